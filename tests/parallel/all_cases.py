"""Every case, by its kind: what ranks must find as one process does, what they must refuse, what they must not need more of."""

from tests.parallel import count_cases, dense_cases, head_cases, mesh_cases, refusal_cases
from tests.parallel.ranks import Case

FEW = {"reverse_kl", "alpha:1.5"}


def equal(world: int) -> dict[str, Case]:
    """On four ranks, those of a few generators."""
    kinds = {"dense": dense_cases.CASES, "head": head_cases.CASES}
    some = {
        f"{kind} {name}": case
        for kind, cases in kinds.items()
        for name, case in cases.items()
        if world == 2 or FEW & set(name.split())
    }
    return some | {f"mesh {name}": case for name, case in mesh_cases.cases(world).items()}


def cases(world: int) -> dict[str, Case]:
    """All cases; disagreements and numbers of all-reduces are those of two ranks."""
    return equal(world) | (refusal_cases.CASES | count_cases.CASES if world == 2 else {})
