"""Two teachers of a regression: one that is tough, trained on the truth, and one that is tolerant, trained on softened truth.

With e = |s - y| the student's error in one coordinate and e_k = |t_k - y| that of teacher k:

    main(e)        = 3 e  where e <= e_tol,  e^2 + 3 e_tol - e_tol^2  elsewhere
    assist(e; e_k) = a_k max(e - e_k, 0) + b_k max(min(e, e_k) - c e_k, 0)
    loss           = w main + w_tough assist(e; e_tough) + w_tol assist(e; e_tol)

A teacher helps in proportion to how it does on this very coordinate: a student that is worse than it is pulled harder, one
that is better is pushed further from the teacher's error and towards the truth, and one whose error is below c times
the teacher's is left alone. Only the size of a teacher's error enters, not its side: a teacher cannot pull the student away from the truth.

Laws (tested): zero exactly at the truth; continuous, never decreasing in e; every gradient points to the truth; a teacher that
is right everywhere adds a_k |s - y|.

Source: Fard & Mahoor, arXiv 2111.07047. The abstract names the two assistive losses; their shape follows the authors'
public code, which reflects each teacher to the student's side of the truth, with two changes that are ours and leave
its gradient as it is: the assistive loss is shifted by a constant on each piece so that it is continuous (theirs jumps at
c e_k), and non-negative. Defaults are those of the code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["Assist", "TwoTeachers"]


@dataclass(frozen=True)
class Assist:
    """How one teacher helps: weight (w), beyond (a), within (b), close (c) in assist(e; e_k).

    Example:
        >>> Assist(1.0, 0.9, 0.45, 0.15)(torch.tensor([0.1, 0.5, 2.0]), torch.tensor(1.0))    # e, teacher's error 1
        tensor([0.0000, 0.1575, 1.2825])
    """

    weight: float = 1.0
    beyond: float = 0.9
    within: float = 0.45
    close: float = 0.15

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("weight", "beyond", "within"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}; pass a finite number >= 0")
        if not 0 <= self.close <= 1:
            raise ValueError(f"close: got {self.close}; pass a number in [0, 1]")

    def __call__(self, error: Tensor, teacher_error: Tensor) -> Tensor:
        """assist(e; e_k) times the weight, elementwise."""
        beyond = (error - teacher_error).clamp_min(0)
        within = (torch.minimum(error, teacher_error) - self.close * teacher_error).clamp_min(0)
        return self.weight * (self.beyond * beyond + self.within * within)


@dataclass(frozen=True)
class TwoTeachers:
    """The loss of a regression with a tough and a tolerant teacher, one number per row.

    Fields:
        weight: w > 0, of the main loss.
        tough, tolerant: how each teacher assists.

    Example:
        >>> y, student = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 1.0]])
        >>> TwoTeachers().rows(student, y, tough=y, tolerant=y)       # 2 * 0.25 + 0.9 * 0.5 + 0.8 * 0.5, over two coordinates
        tensor([0.6750])

    Source: arXiv 2111.07047.
    """

    weight: float = 2.0
    tough: Assist = Assist(1.0, 0.9, 0.45, 0.15)
    tolerant: Assist = Assist(1.0, 0.8, 0.4, 0.15)

    def __post_init__(self) -> None:
        """Check the field."""
        check_positive("weight", self.weight)

    def rows(self, student: Tensor, target: Tensor, *, tough: Tensor, tolerant: Tensor) -> Tensor:
        """The mean over coordinates, [N]; all arguments are [N, D]; the teachers are constants.

        Raises:
            ValueError: shapes that differ or are not [N, D].
            TypeError: a dtype that is not floating.
        """
        shapes = {}
        for name, x in (("student", student), ("target", target), ("tough", tough), ("tolerant", tolerant)):
            shapes[name] = tuple(check_floating(name, x, "[N, D]").shape)
        if len(set(shapes.values())) > 1 or student.dim() != 2:
            raise ValueError(f"got {', '.join(f'{k} {v}' for k, v in shapes.items())}: pass [N, D] four times")
        error = (student - target).abs()
        by_tough, by_tolerant = (tough - target).abs(), (tolerant - target).abs()
        main = torch.where(error <= by_tolerant, 3 * error, error.square() + 3 * by_tolerant - by_tolerant.square())
        assisted = self.tough(error, by_tough) + self.tolerant(error, by_tolerant)
        return (self.weight * main + assisted).mean(1)
