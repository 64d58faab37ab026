"""Distillation: a student model, a teacher, and an objective between their next-token distributions, without logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..checks import check_positive
from ..generators import Generator
from ..head.triton.use import check_backend
from ..objectives.distillation import RowObjective, TeacherOperator, distillation_objective, linear_distillation
from ..objectives.distillation.front import check_kernel
from .cached import CachedTeacher, check_cacheable
from .hooks import Head, NextStates, check_head, head_of, next_states, unwrapped
from .losses import LabelLoss
from .trainer import HeadTrainer

__all__ = ["DistillationTrainer", "LiveTeacher", "Teacher", "TeacherLoss", "check_pair", "check_tokenizers"]


class Teacher(Protocol):
    """What a student learns from: a model, or what was kept of one."""

    def __call__(
        self,
        objective: RowObjective,
        states: NextStates,
        head: Head,
        inputs: Mapping[str, Any],
        vocabulary: int | None = None,
    ) -> Tensor:
        """The objective between this teacher and a student, summed over the tokens that count.

        Args:
            objective: of `distillation_objective`.
            states, head: the student's.
            inputs: the batch as the collator made it.
            vocabulary: compare the first K tokens, where the rest is padding.
        """
        ...


@dataclass(frozen=True, eq=False)
class LiveTeacher:
    """A model that is asked at every step: in evaluation mode, without gradients.

    Attributes:
        model: a causal language model.
        generator: its probabilities are softargmax of its logits under this: the one that it was trained with.
        backend: as `fenchel.linear_distillation`; also of the cross-entropy that a `TeacherLoss` adds.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> net, ids = LlamaForCausalLM(config), torch.arange(8)[None]
        >>> batch = {"input_ids": ids, "labels": ids}
        >>> loss = LiveTeacher(net)(distillation_objective("js"), next_states(net.eval(), batch), head_of(net), batch)
        >>> loss.item()  # its own teacher
        0.0
    """

    model: Any
    generator: str | Generator = "kl"
    backend: str = "auto"

    def seen(self, objective: RowObjective) -> RowObjective:
        """The objective of both models' logits."""
        return objective if self.generator == "kl" else TeacherOperator(objective, self.generator)

    def __call__(
        self,
        objective: RowObjective,
        states: NextStates,
        head: Head,
        inputs: Mapping[str, Any],
        vocabulary: int | None = None,
    ) -> Tensor:
        """The objective, from both models' hidden states; see `Teacher`."""
        self.model.eval()
        with torch.no_grad():
            theirs = next_states(self.model, inputs)
        teacher = head_of(self.model)
        return between(self.seen(objective), theirs.hidden, teacher, states, head, vocabulary, backend=self.backend)


def between(
    objective: RowObjective,
    teacher_hidden: Tensor,
    teacher: Head,
    states: NextStates,
    student: Head,
    vocabulary: int | None = None,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """`linear_distillation` of two heads: hidden states [N, D] of the teacher and the rows that count of the student's."""
    return linear_distillation(
        objective,
        (teacher_hidden.to(teacher.weight.dtype), teacher.weight, teacher.bias),
        (states.hidden.to(student.weight.dtype), student.weight, student.bias),
        states.target if objective.needs_target else None,
        softcap=(teacher.softcap, student.softcap),
        scale=(teacher.scale, student.scale),
        mask=states.counted,
        vocabulary=vocabulary,
        reduction=reduction,
        backend=backend,
    )


@dataclass(frozen=True)
class TeacherLoss:
    """objective(teacher, student) + hard_weight * cross-entropy of the labels, a `TokenLoss`.

    Nothing is mixed in unless hard_weight says so. Where the two should be an average, weigh the objective as well: "kl:factor=0.5" with hard_weight 0.5.

    Attributes:
        teacher: a `LiveTeacher`, a `CachedTeacher`, or another `Teacher`.
        objective: a name (`distillation_names`), a Generator or an objective; temperature and factor are its own parameters ("kl:temperature=2,factor=4").
        vocabulary: compare the first K tokens alone, for models whose vocabularies are padded differently.
        hard_weight: >= 0.
        label_smoothing: of the cross-entropy.

    Raises:
        ValueError: an unknown objective, a weight below zero, a kernel that there is not.
    """

    teacher: Teacher
    objective: str | Generator | RowObjective
    vocabulary: int | None = None
    hard_weight: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        objective = distillation_objective(self.objective)
        if isinstance(self.teacher, LiveTeacher):
            check_kernel(self.teacher.seen(objective), self.teacher.backend)
        if self.hard_weight != 0:
            check_positive("hard_weight", self.hard_weight)
        elif self.label_smoothing != 0:
            raise ValueError(
                f"label_smoothing: got {self.label_smoothing}, but no label has a weight; pass hard_weight > 0 too"
            )

    def __call__(self, states: NextStates, head: Head, inputs: Mapping[str, Any]) -> Tensor:
        """The sum of the losses of the tokens that count."""
        loss = self.teacher(distillation_objective(self.objective), states, head, inputs, self.vocabulary)
        if self.hard_weight == 0:
            return loss
        backend = self.teacher.backend if isinstance(self.teacher, LiveTeacher) else "auto"
        hard = LabelLoss(label_smoothing=self.label_smoothing, backend=backend)
        return loss + self.hard_weight * hard(states, head, inputs)


def asked(teacher: Any, backend: str) -> Any:
    """A model as a `LiveTeacher`; another `Teacher` as it is.

    Raises:
        ValueError: a backend, for a `Teacher` that has its own or none.
    """
    if isinstance(teacher, torch.nn.Module):
        return LiveTeacher(teacher, backend=backend)
    if check_backend(backend) != "auto":
        raise ValueError(
            f"backend: got {backend!r} with a teacher that is no model; pass LiveTeacher(model, backend={backend!r}), or leave it out"
        )
    return teacher


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse two tokenisers that do not mean the same by the same id.

    Raises:
        ValueError: the first token that they number differently.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    token = min(
        (t for t in theirs.keys() | ours.keys() if theirs.get(t) != ours.get(t)),
        key=lambda t: (min(theirs.get(t, len(theirs)), ours.get(t, len(ours))), t),
    )
    raise ValueError(
        f"the tokenisers of teacher and student differ ({len(theirs)} and {len(ours)} entries; {token!r} is "
        f"{theirs.get(token, 'absent')} and {ours.get(token, 'absent')}): pass two models with one tokeniser, or align their texts by spans"
    )


def check_pair(teacher: Any, student: Any, vocabulary: int | None, entries: int | None = None) -> None:
    """Refuse a teacher that cannot teach this student.

    Args:
        teacher, student: causal language models.
        vocabulary: as `TeacherLoss`.
        entries: how many tokens the tokeniser has, where it is known.

    Raises:
        ValueError: the student itself, a model whose logits the fused head does not reproduce, vocabularies of different
            sizes without `vocabulary`, or one that cuts off tokens.
    """
    if unwrapped(teacher) is unwrapped(student):
        raise ValueError("teacher: got the student itself, which training would move; pass a copy")
    try:
        check_head(teacher)
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from error
    sizes = len(head_of(teacher).weight), len(head_of(student).weight)
    if vocabulary is None and sizes[0] != sizes[1]:
        raise ValueError(
            f"teacher: got a vocabulary of {sizes[0]}, the student's has {sizes[1]}; if they differ in padding alone, "
            "pass vocabulary = the number of real tokens"
        )
    if vocabulary is not None:
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= min(sizes):
            raise ValueError(f"vocabulary: got {vocabulary!r}; pass 1 to {min(sizes)}, what both models have")
        if entries is not None and vocabulary < entries:
            raise ValueError(
                f"vocabulary: got {vocabulary}, but the tokeniser has {entries} entries; pass at least these"
            )


class DistillationTrainer(HeadTrainer):
    """Trainer that brings a student to a teacher under any objective of distillation, without either model's logits.

    Takes what `transformers.Trainer` takes (`model` is the student), and
        teacher: a causal language model, or a `Teacher`. A model, also that of a `LiveTeacher`, is put on the student's device,
            stays in evaluation mode without gradients, and is no part of any checkpoint.
        objective, vocabulary, hard_weight: as `TeacherLoss`.
        backend: as `LiveTeacher`, for a teacher that is a model.
        teacher_tokenizer: compared with `processing_class` where both are given.

    Batches as `HeadTrainer`: labels say which tokens count (-100: none), and are learnt from only where hard_weight or
    the objective says so.

    Raises:
        ValueError: as `HeadTrainer` and `check_pair`; tokenisers that differ.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> arguments = TrainingArguments("unused", use_cpu=True, report_to=[])
        >>> student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config)
        >>> trainer = DistillationTrainer(student, arguments, teacher=teacher, objective="js")
        >>> ids = torch.arange(12)[None] % 5
        >>> bool(trainer.compute_loss(student, {"input_ids": ids, "labels": ids}) > 0)
        True
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        *,
        teacher: Any,
        objective: str | Generator | RowObjective,
        vocabulary: int | None = None,
        hard_weight: float = 0.0,
        backend: str = "auto",
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ):
        source = asked(teacher, backend)
        model_asked = source.model if isinstance(source, LiveTeacher) else None
        tokenizer = kwargs.get("processing_class")
        if tokenizer is not None and teacher_tokenizer is not None:
            check_tokenizers(teacher_tokenizer, tokenizer)
        if model_asked is not None:
            check_pair(model_asked, model, vocabulary, None if tokenizer is None else len(tokenizer))
        smoothing = 0.0 if args is None else float(args.label_smoothing_factor)
        if isinstance(teacher, CachedTeacher):
            spec = teacher.cache.spec
            check_cacheable(distillation_objective(objective), spec.temperature, sparse=spec.k is None)
        loss = TeacherLoss(source, objective, vocabulary, hard_weight, smoothing)
        super().__init__(model, args, token_loss=loss, **kwargs)
        # a model spread over devices stays where it is
        if (
            model_asked is not None
            and self.place_model_on_device
            and getattr(model_asked, "hf_device_map", None) is None
        ):
            model_asked.to(self.args.device)
