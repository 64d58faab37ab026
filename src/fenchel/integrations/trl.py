"""TRL's distillation trainers with any objective, through hidden states and the fused heads: on-policy and off-policy.

`TRLDistillationTrainer` is `trl.DistillationTrainer`, which trains on what the student writes after each prompt.
`TRLGKDTrainer` is `trl.experimental.gkd.GKDTrainer`, which does so for a share `lmbda` of the batches and trains on the
data for the others; its own loss stores both models' logits.

Both replace methods that TRL may change, so the version is checked when this module is imported. In both, `objective`
says the divergence and its temperature; `beta` is refused, and `temperature` of the arguments is that of sampling alone.
"""

import inspect
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import Generator
from ..head.logp import linear_logp
from ..objectives.distillation import RowObjective, distillation_objective
from ..objectives.distillation.front import check_kernel
from .distillation import LiveTeacher, TeacherLoss, between, check_pair
from .hooks import IGNORED, NextStates, check_head, head_of
from .losses import batch_loss
from .trainer import devices

__all__ = ["TRLDistillationTrainer", "TRLGKDTrainer"]

SUPPORTED = "1.16"


def check_version(installed: str) -> None:
    """Raise ImportError unless TRL's version is the one whose internals are known."""
    if installed.split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(
            f"trl {installed} is installed, fenchel.integrations.trl works with {SUPPORTED}: pip install 'trl=={SUPPORTED}.*'"
        )


# before anything of TRL is imported, which could fail without saying so
check_version(version("trl"))
with warnings.catch_warnings():
    # that experimental parts change: the version is held
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.distillation_config import DistillationConfig  # noqa: E402
from trl.trainer.distillation_trainer import DistillationTrainer  # noqa: E402


def _check_arguments(args: Any, kind: type) -> None:
    """Refuse the arguments that the objective replaces."""
    default = inspect.signature(kind).parameters["beta"].default
    if args is not None and args.beta != default:
        raise ValueError(f"beta: got {args.beta}, which has no effect here; pass objective, as in 'js:{args.beta}'")


class TRLDistillationTrainer(DistillationTrainer):
    """`trl.DistillationTrainer`, on-policy, with any objective.

    Takes what it takes but `beta`, and
        objective: as `TeacherLoss`. TRL's own default, beta = 1, is KL(student||teacher).
        backend: as `LiveTeacher`.

    Raises:
        ValueError: as `check_pair`; no teacher; an objective that is unknown, or that has no kernel of this kind.
    """

    def __init__(
        self,
        model: Any,
        teacher_model: Any,
        args: DistillationConfig | None = None,
        *,
        objective: str | Generator | RowObjective,
        backend: str = "auto",
        **kwargs: Any,
    ):
        self.objective, self.backend = distillation_objective(objective), backend
        check_kernel(self.objective, backend)
        _check_arguments(args, DistillationConfig)
        if teacher_model is None:
            raise ValueError("teacher_model: got None; pass a model or its path")
        super().__init__(model, teacher_model, args, **kwargs)
        check_head(self.model)
        check_pair(self.accelerator.unwrap_model(self.teacher_model), self.model, None)

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, sum of the student's entropies, number of tokens), as TRL's own."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        counted = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        # images and what belongs to them
        more = {
            name: inputs[name] for name in inspect.signature(self._get_last_hidden_state).parameters if name in inputs
        }
        length = counted.shape[1]
        ours = self._get_last_hidden_state(unwrapped_student, ids, attended, length, **more)
        assert self.teacher_model is not None
        self.teacher_model.eval()
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            theirs = self._forward_redirection(
                self.teacher_model, teacher, self._get_last_hidden_state, teacher, ids, attended, length, **more
            )
        target = torch.where(counted, inputs["completion_ids"], IGNORED).flatten()
        states, head = NextStates(ours.flatten(0, 1), target.to(ours.device)), head_of(unwrapped_student)
        total = between(self.objective, theirs.flatten(0, 1), head_of(teacher), states, head, backend=self.backend)
        n = states.counted.sum()
        items = n if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(items, device=total.device).clamp(min=1)
        with torch.no_grad():
            entropy = linear_logp(
                states.hidden.to(head.weight.dtype),
                head.weight,
                states.target,
                bias=head.bias,
                softcap=head.softcap,
                scale=head.scale,
                temperature=self.temperature,
                backend=self.backend,
            ).entropy
        return loss, entropy.sum(), n


class TRLGKDTrainer(GKDTrainer):
    """`trl.experimental.gkd.GKDTrainer`, a share `lmbda` of the batches on-policy, with any objective.

    Takes what it takes but `beta`, and
        objective, hard_weight: as `TeacherLoss`; labels of a sequence that the student wrote are its own tokens.
        backend: as `LiveTeacher`.

    A batch of the data is divided by the tokens of the accumulated batch, one that was written by its own tokens and the
    number of accumulated batches: how many there will be in the others is not known when it is trained on.

    Raises:
        ValueError: as `check_pair`; an objective that is unknown.
    """

    def __init__(
        self,
        model: Any,
        teacher_model: Any,
        args: GKDConfig | None = None,
        *,
        objective: str | Generator | RowObjective,
        hard_weight: float = 0.0,
        backend: str = "auto",
        **kwargs: Any,
    ):
        check_kernel(distillation_objective(objective), backend)
        _check_arguments(args, GKDConfig)
        super().__init__(model, teacher_model, GKDConfig() if args is None else args, **kwargs)
        check_head(self.model)
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        check_pair(teacher, self.model, None)
        self.token_loss = TeacherLoss(LiveTeacher(teacher, backend=backend), objective, hard_weight=hard_weight)
        self._written = False

    def generate_on_policy_outputs(self, model: Any, inputs: Any, generation_config: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """TRL's; the batch that it makes is remembered as one that was written."""
        self._written = True
        return super().generate_on_policy_outputs(model, inputs, generation_config)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective over the tokens that the labels count."""
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        written, self._written = self._written, False
        items = None if written else num_items_in_batch
        loss = batch_loss(self.token_loss, self.accelerator.unwrap_model(model), model, batch, items)
        if items is not None:
            loss = loss * devices(self)
        elif num_items_in_batch is not None:
            # Trainer takes the loss for one over the accumulated batch
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss
