"""Tabular policies that answer questions in several tokens, a reward for the right answer, and a teacher with flaws.

A policy is a table of logits [questions, tokens, V]: each token of each answer has its own softmax. Everything that an
experiment needs is exact: the probability of the right answer is a product, the KL to the teacher a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# From the log-probabilities of the sampled tokens (with a gradient), those of the policy that sampled them, those of the
# teacher [Q, n, tokens], advantages and rewards [Q, n], and the share of the budget that is used, to a loss per token.
TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class World:
    """Questions with one right answer each, and what a teacher says.

    Fields:
        right: [Q, tokens], the right token at each place.
        teacher: [Q, tokens, V], log-probabilities.
        flawed: [Q] bool, the questions that the teacher gets wrong.
    """

    right: Tensor
    teacher: Tensor
    flawed: Tensor

    def solved(self, logits: Tensor) -> Tensor:
        """[Q]: the probability of the right answer."""
        return self.of(logits.log_softmax(-1), self.right.unsqueeze(1)).sum(-1).exp().squeeze(1)

    def kl(self, logits: Tensor) -> Tensor:
        """[Q]: KL(policy || teacher) of whole answers."""
        logp = logits.log_softmax(-1)
        return (logp.exp() * (logp - self.teacher)).sum((-2, -1))

    @staticmethod
    def of(logp: Tensor, answers: Tensor) -> Tensor:
        """[Q, n, tokens]: the log-probabilities [Q, tokens, V] of the tokens of answers [Q, n, tokens]."""
        return logp.unsqueeze(1).expand(-1, answers.shape[1], -1, -1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)


def world(
    seed: int,
    *,
    questions: int = 32,
    tokens: int = 3,
    vocabulary: int = 6,
    flawed: float = 0.25,
    sure: float = 0.9,
) -> World:
    """Random right answers, and a teacher that gives each token of its answer the probability `sure`.

    On a share `flawed` of the questions, one token of the teacher's answer is wrong.

    Example:
        >>> w = world(0, questions=8)
        >>> int(w.flawed.sum()), round(float(w.solved(w.teacher)[~w.flawed].mean()), 3)
        (2, 0.729)
    """
    made = torch.Generator().manual_seed(seed)
    right = torch.randint(vocabulary, (questions, tokens), generator=made)
    wrong = torch.zeros(questions, dtype=torch.bool)
    wrong[: round(flawed * questions)] = True
    says = right.clone()
    place = torch.randint(tokens, (questions,), generator=made)
    shift = torch.randint(1, vocabulary, (questions,), generator=made)
    every = torch.arange(questions)
    says[every, place] = (right[every, place] + shift * wrong) % vocabulary
    other = (1 - sure) / (vocabulary - 1)
    p = torch.full((questions, tokens, vocabulary), other, dtype=torch.float64).scatter(-1, says.unsqueeze(-1), sure)
    return World(right, p.log(), wrong)


@dataclass(frozen=True)
class Course:
    """What training recorded: after how many answers [points], reward on all, flawed and sound questions, KL."""

    answers: list[int]
    reward: list[float]
    flawed: list[float]
    sound: list[float]
    kl: list[float]

    def until(self, target: float) -> int:
        """Answers sampled until the reward first is at the target; twice the budget where it never is."""
        return next((a for a, r in zip(self.answers, self.reward, strict=True) if r >= target), 2 * self.answers[-1])


def learn(
    world: World,
    loss: TokenLoss,
    *,
    seed: int,
    rounds: int,
    group: int = 8,
    inner: int = 1,
    lr: float = 0.05,
    every: int = 5,
) -> Course:
    """Trains a policy that starts uniform: each round it answers every question `group` times, then takes `inner` steps of Adam.

    The reward of an answer is 1 if all its tokens are right, else 0; advantages are GRPO's.
    """
    from fenchel.objectives.distillation.trrd import group_advantage

    made = torch.Generator().manual_seed(seed)
    logits = torch.zeros_like(world.teacher, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr)
    course = Course([], [], [], [], [])
    questions, tokens = world.right.shape
    for step in range(rounds + 1):
        if step % every == 0 or step == rounds:
            _record(course, world, logits.detach(), step * group * questions)
        if step == rounds:
            break
        with torch.no_grad():
            old = logits.log_softmax(-1)
            flat = torch.multinomial(old.exp().flatten(0, 1), group, replacement=True, generator=made)
            answers = flat.reshape(questions, tokens, group).mT
            reward = (answers == world.right.unsqueeze(1)).all(-1).double()
            advantage = group_advantage(reward)
            old_logp, teacher_logp = world.of(old, answers), world.of(world.teacher, answers)
        for _ in range(inner):
            optimizer.zero_grad()
            logp = world.of(logits.log_softmax(-1), answers)
            rows = loss(logp, old_logp, teacher_logp, advantage, reward, step / rounds)
            (rows.sum() / group).backward()
            optimizer.step()
    return course


def _record(course: Course, world: World, logits: Tensor, answers: int) -> None:
    solved = world.solved(logits)
    course.answers.append(answers)
    course.reward.append(float(solved.mean()))
    course.flawed.append(float(solved[world.flawed].mean()))
    course.sound.append(float(solved[~world.flawed].mean()))
    course.kl.append(float(world.kl(logits).mean()))
