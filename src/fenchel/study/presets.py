"""One dial: the time budget of a study chooses the size of its model."""

from dataclasses import dataclass

from fenchel.study.errors import StudyError


class TooLittleTime(StudyError):
    """The budget does not allow a run of LEAST_STEPS steps on this machine."""


@dataclass(frozen=True)
class Preset:
    """A size. `minutes` is the smallest budget for which it is chosen, `steps` the most that a run trains for.

    `heldout` is about the number of held-out tokens that its final figures are made of.
    """

    name: str
    minutes: float
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    context: int
    batch_size: int
    steps: int
    heldout: int


# fmt: off
PRESETS = (
    #      name      minutes   V     D   layers heads context batch steps heldout
    Preset("nano",     0.0,  1_024,  64,   2,     4,    64,     8,   200,  2_048),
    Preset("small",    4.0,  4_096, 128,   2,     4,   128,     8,   250,  4_096),
    Preset("medium",  20.0,  8_192, 192,   3,     6,   128,    16,   400,  8_192),
    Preset("large",   50.0, 16_384, 256,   3,     8,   128,    16,   500,  8_192),
    Preset("huge",   240.0, 32_768, 512,   4,     8,   128,    16,   800,  8_192),
)
# fmt: on
# A run shorter than this says nothing about an objective.
LEAST_STEPS = 20
# Part of the budget that is planned for: what is left absorbs a machine that slows down while the study runs.
PLANNED = 0.85


def preset(name: str) -> Preset:
    """The preset of that name."""
    for candidate in PRESETS:
        if candidate.name == name:
            return candidate
    raise StudyError(f"no preset named {name}: pass one of {', '.join(p.name for p in PRESETS)}")


def preset_for(minutes: float) -> Preset:
    """The largest preset whose least budget is within `minutes`.

    >>> preset_for(5).name, preset_for(60).vocab_size
    ('small', 16384)
    """
    if not minutes > 0:
        raise StudyError(f"--budget must be a positive number of minutes, got {minutes:g}")
    return [candidate for candidate in PRESETS if candidate.minutes <= minutes][-1]


def head_share(p: Preset) -> float:
    """Share of a training step's multiplications that the output projection takes, counted from the shapes.

    A Llama layer has 4 D^2 weights in its attention and 3 D (8/3 D) in its feed-forward part; the head has V D.
    """
    body = p.layers * 12 * p.hidden_size**2
    head = p.vocab_size * p.hidden_size
    return head / (head + body)


def steps_within(seconds: float, per_step: float, fixed: float, most: int) -> int:
    """Steps that a run can take: `seconds` are left for all runs, `per_step` is one step of every run together.

    `fixed` seconds (evaluations, set-up) do not depend on the number of steps. Rounded down to a multiple of ten above
    a hundred, so that a study repeated on the same machine mostly gets the same number.
    """
    steps = min(most, int((seconds * PLANNED - fixed) / per_step))
    if steps < LEAST_STEPS:
        need = (LEAST_STEPS * per_step + fixed) / PLANNED / 60
        raise TooLittleTime(
            f"--budget leaves {max(0, steps)} steps a run: pass --budget {need + 0.1:.1f} or more, "
            "or fewer objectives or seeds"
        )
    return steps // 10 * 10 if steps > 100 else steps
