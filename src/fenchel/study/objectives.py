"""The objectives of a study of models that are trained from labels: supervised ones, by name, each once."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from fenchel.generators import generator
from fenchel.objectives.supervised import CompSum, FenchelYoung, LabelObjective, Sum, supervised_objective
from fenchel.objectives.supervised.objective import EVERY
from fenchel.objectives.supervised.predictions import predictor
from fenchel.study.errors import StudyError, one_line
from fenchel.study.record import run_directory


def checked_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a study records them: a generator's as the generator spells it, any other with single spaces.

    Raises:
        StudyError: no name, one that is unknown, that trains nothing or has no predictions, two of one objective or of one directory.

    Example:
        >>> checked_objectives(["kl", "alpha:1.50", "fenchel_young:js", "focal:gamma=2", "nce  +  0.5*rce"])
        ('kl', 'alpha:1.5', 'js', 'focal:gamma=2', 'nce + 0.5*rce')
    """
    if not names or not all(names):
        raise StudyError("--objectives has no name, or none between two commas: pass names such as kl,alpha:1.5")
    made: dict[str, LabelObjective] = {}
    for given in names:
        name, objective = _named(given)
        if name in made:
            raise StudyError(f"--objectives names {name} twice")
        made[name] = objective
    for one, other in combinations(made, 2):
        if weights(made[one]) == weights(made[other]):
            raise StudyError(f"--objectives {one} and {other} are one objective for labels: leave one of them out")
        if run_directory(Path(), one, 0) == run_directory(Path(), other, 0):
            raise StudyError(f"--objectives {one} and {other} would share a directory: spell one of them differently")
    return tuple(made)


def _named(given: str) -> tuple[str, LabelObjective]:
    name = " ".join(given.split())
    try:
        objective = supervised_objective(name)
        predictor(objective)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--objectives {name}: {one_line(error)}") from error
    check_learns("--objectives", name, objective)
    if isinstance(objective, FenchelYoung) and objective.temperature == 1:
        name = generator(objective.generator).name
    return name, objective


def check_learns(option: str, name: str, objective: LabelObjective) -> None:
    """StudyError for an objective of penalties alone, as the value of an option."""
    if all(not isinstance(part, str) and part.takes == EVERY for part in weights(objective)):
        raise StudyError(f"{option} {name}: a penalty alone learns no label; pass cross_entropy + {name}, say")


def weights(objective: LabelObjective) -> dict[LabelObjective | str, float]:
    """What an objective is a sum of, and how much of it: equal for all names of one objective, `kl` and `cross_entropy` among them.

    Example:
        >>> weights(supervised_objective("2*mae + kl:temperature=3 + mae"))
        {CompSum(tau=2.0): 3.0, '3*kl': 1.0}
    """
    if isinstance(objective, FenchelYoung):
        made = generator(objective.generator)
        name = made.name if objective.temperature == 1 else made.scaled(objective.temperature).name
        # the same number for class indices, which are all that a study trains from
        return {CompSum(1.0) if name == "kl" else name: 1.0}
    if not isinstance(objective, Sum):
        return {objective: 1.0}
    total: dict[LabelObjective | str, float] = {}
    for factor, term in objective.terms:
        for part, weight in weights(term).items():
            total[part] = total.get(part, 0.0) + factor * weight
    return {part: weight for part, weight in total.items() if weight}
