"""The generators and objectives of labels that are measured: one of every kind that the library knows, by name."""

import torch

import fenchel

# What stands for a family that has a parameter: sparse and dense members, and those that have kernels of their own.
MEMBERS = {"alpha:A": ("alpha:1.5", "alpha:2", "alpha:1.25", "alpha:0.5"), "js:BETA": ("js:0.3",)}


def every() -> tuple[str, ...]:
    """The generators of the library, its families by their members.

    Example:
        >>> {"kl", "tv", "alpha:1.5"} < set(every())
        True
    """
    return tuple(member for name in fenchel.generator_names() for member in MEMBERS.get(name, (name,)))


def losses() -> tuple[str, ...]:
    """The objectives of labels that are not a generator's loss, as their names alone make them.

    Example:
        >>> "focal" in losses(), "kl" in losses()
        (True, False)
    """
    return tuple(name for name in fenchel.supervised_names() if name not in fenchel.generator_names())


def has_loss(name: str) -> bool:
    """Whether the generator has an operator and a loss, or is a divergence alone."""
    return fenchel.generator(name).unlink is not None


def kinked(name: str) -> bool:
    """Whether f' jumps at 1: the gradient of the divergence then has either sign where the two probabilities are equal.

    Example:
        >>> kinked("tv"), kinked("js")
        (True, False)
    """
    f, h = fenchel.generator(name).f, 1e-6
    u = torch.tensor([1 - h, 1 + h], dtype=torch.float64)
    return float(f(u).sum()) > 1e-3 * h


def sparse(name: str) -> bool:
    """Whether its operator gives exact zeros."""
    return fenchel.generator(name).sparse
