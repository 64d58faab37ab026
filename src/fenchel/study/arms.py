"""The arms of a distillation study: an objective each, and where its batches and what the teacher says of them come from."""

from collections.abc import Sequence
from dataclasses import dataclass

# Training on labels alone, with no teacher: what distillation is compared with.
LABELS = "labels"
# The data with the teacher asked at every step; the data with a cache of it; a share of batches that the student writes, with the teacher asked.
SOURCES = LIVE, CACHE, ON_POLICY = "live", "cache", "on-policy"


@dataclass(frozen=True)
class Arm:
    """One of the trainings that a study compares.

    Attributes:
        name: what the record calls it.
        objective: LABELS, or a name of `distillation_objective`.
        source: one of SOURCES; LIVE for LABELS, which no teacher takes part in.
    """

    name: str
    objective: str
    source: str


def arms_of(objectives: Sequence[str], sources: Sequence[str]) -> tuple[Arm, ...]:
    """Every objective from every source; LABELS, which no source changes, once.

    The only source goes without saying, and so does LIVE.

    Example:
        >>> [arm.name for arm in arms_of(("labels", "kl"), ("live", "on-policy"))]
        ['labels', 'kl', 'kl (on-policy)']
        >>> arms_of(("kl",), ("cache",))
        (Arm(name='kl', objective='kl', source='cache'),)
    """
    made = []
    for objective in objectives:
        for source in (LIVE,) if objective == LABELS else sources:
            plain = len(sources) == 1 or source == LIVE
            made.append(Arm(objective if plain else f"{objective} ({source})", objective, source))
    return tuple(made)
