"""StableKD: teacher and student are distilled block by block, and the blocks are merged until they are the networks.

A deep student that is distilled end to end has to move all its blocks at once, each from the gradients that the others
leave it. Here the networks are cut into K aligned blocks first. Each group of student blocks is fed what the *teacher*
gives at the group's entrance and has to return what the teacher gives at its exit; no gradient crosses the cut. Then
neighbouring groups are merged, two by two, until one group is left, which is distillation end to end.

Blocks are any callables from a tensor to a tensor, whose exits have the teacher's shapes (add a projection to a block
of the student where they do not). Here is no divergence of its own: the last group's loss is any objective on logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["StableKD", "block_losses", "merged"]

Block = Callable[[Tensor], Tensor]
Group = tuple[int, int]  # first block and the one after the last


def merged(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Neighbouring groups merged two by two; an odd one at the end stays alone for now.

    Example:
        >>> merged(((0, 1), (1, 2), (2, 3)))
        ((0, 2), (2, 3))
    """
    pairs = [(groups[i][0], groups[min(i + 1, len(groups) - 1)][1]) for i in range(0, len(groups), 2)]
    return tuple(pairs)


@dataclass(frozen=True)
class StableKD:
    """The schedule: which blocks are distilled together at which time.

    Stages of equal length share the first part of the training, of length `apart`: K groups of one block, then half as
    many, ... ; the rest is end to end.

    Fields:
        blocks: K >= 1, into how many blocks both networks are cut.
        apart: in [0, 1], the share of the training before it is end to end. 0 is plain distillation.

    Raises:
        ValueError: K < 1, or `apart` outside [0, 1].

    Example:
        >>> schedule = StableKD(blocks=4, apart=0.5)
        >>> schedule.groups(0.0)
        ((0, 1), (1, 2), (2, 3), (3, 4))
        >>> schedule.groups(0.3)
        ((0, 2), (2, 4))
        >>> schedule.groups(0.5)
        ((0, 4),)

    Source: the abstract of "StableKD: Breaking Inter-block Optimization Entanglement for Stable Knowledge Distillation"
        (decomposition and recomposition). Derived here: that merging goes two by two, in stages of equal length.
    """

    blocks: int
    apart: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what is no schedule."""
        if self.blocks < 1:
            raise ValueError(f"got blocks={self.blocks}: pass at least 1")
        if not 0 <= self.apart <= 1:
            raise ValueError(f"got apart={self.apart}: pass a share of the training, from 0 to 1")

    def stages(self) -> tuple[tuple[Group, ...], ...]:
        """The groups of every stage, the last of which is one group: the networks themselves."""
        groups: tuple[Group, ...] = tuple((k, k + 1) for k in range(self.blocks))
        found = [groups]
        while len(groups) > 1:
            groups = merged(groups)
            found.append(groups)
        return tuple(found)

    def groups(self, progress: float) -> tuple[Group, ...]:
        """The groups when a share `progress` in [0, 1] of the training is done."""
        *before, last = self.stages()
        if progress >= self.apart:
            return last
        return before[int(progress / self.apart * len(before))] if before else last


def block_losses(
    teacher: Sequence[Block],
    student: Sequence[Block],
    x: Tensor,
    groups: Sequence[Group],
    objective: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """The loss of each group, a scalar that reaches the parameters of that group's blocks alone.

    For all groups but the last it is the mean squared difference of the features at the exit; for the last, whose exit
    is the logits, the mean of `objective(teacher_logits, student_logits)`. Add them up and call backward once.

    Args:
        teacher, student: K blocks each; blocks of the student may have any inside.
        x: [N, ...], the input of the first block.
        groups: as `StableKD.groups` returns them: they follow each other and cover all blocks.
        objective: from teacher and student logits, [N, V] each, to [N]. The teacher's are without gradient.

    Raises:
        ValueError: numbers of blocks that differ, groups that do not cover them, features of different shapes.

    Example:
        >>> double, one = (lambda x: 2 * x), (lambda x: x)
        >>> x = torch.ones(3, 2)
        >>> difference = lambda t, s: (t - s).abs().sum(-1)
        >>> block_losses([double, one], [one, one], x, [(0, 1), (1, 2)], difference)
        [tensor(1.), tensor(0.)]
        >>> block_losses([double, one], [one, one], x, [(0, 2)], difference)
        [tensor(2.)]
    """
    if len(teacher) != len(student):
        raise ValueError(f"got {len(teacher)} blocks of the teacher and {len(student)} of the student: cut both alike")
    edges = [start for start, _ in groups] + [len(teacher)]
    if edges[0] != 0 or any(end != after for (_, end), after in zip(groups, edges[1:], strict=True)):
        raise ValueError(f"got groups {tuple(groups)} of {len(teacher)} blocks: pass groups that follow each other")
    with torch.no_grad():
        features = [x]
        for block in teacher:
            features.append(block(features[-1]))
    losses = []
    for start, end in groups:
        ours, theirs = features[start], features[end]
        for block in student[start:end]:
            ours = block(ours)
        if ours.shape != theirs.shape:
            got = f"{tuple(ours.shape)} from the student and {tuple(theirs.shape)} from the teacher"
            raise ValueError(f"got features {got} after block {end}: project the student's to the teacher's shape")
        last = end == len(teacher)
        losses.append(objective(theirs, ours).mean() if last else (theirs - ours).square().mean())
    return losses
