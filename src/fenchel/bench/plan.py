"""What a command measures, as a list of sections: paths in a regime at a shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import fenchel
from fenchel.bench import generators
from fenchel.bench.bars import compared
from fenchel.bench.families import EVERY
from fenchel.bench.paths import ALWAYS, Path, all_paths
from fenchel.bench.regimes import REGIMES, TRAINED, WITH_TEACHER
from fenchel.bench.sizes import Size
from fenchel.study.errors import StudyError

# Paths that take turns with each other, beside those that are always there: what is lost by an interruption.
TOGETHER = 8
# What the curves are drawn of, and the shapes: N at one V, V at one N.
CURVES = ("dense", "kl", "js", "alpha:1.5", "pair:js", "logp")
ROWS, CLASSES = (1024, 2048, 4096, 8192, 16384), (8192, 16384, 32768, 65536, 131072, 262144)
CURVE_AT = (2048, 256, 32768)


@dataclass(frozen=True)
class Section:
    """Paths that are measured together."""

    regime: str
    size: Size
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Said of it while it is measured."""
        return f"{self.regime} {self.size.shape} {self.size.dtype}"

    def parts(self) -> list[tuple[Path, ...]]:
        """Its paths in groups that take turns, each with those that its ratios are taken to."""
        others = [path for path in self.paths if path.key not in ALWAYS]
        groups = [others[i : i + TOGETHER] for i in range(0, len(others), TOGETHER)] or [[]]
        return [self._with_anchors(group) for group in groups]

    def _with_anchors(self, group: list[Path]) -> tuple[Path, ...]:
        needed = {*ALWAYS, *(path.key for path in group)}.union(*(compared(path.key, path.family) for path in group))
        return tuple(path for path in self.paths if path.key in needed)


@dataclass(frozen=True)
class Wanted:
    """What the flags ask for, each None where they say nothing."""

    regimes: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    generators: tuple[str, ...] | None = None
    shapes: tuple[str, ...] | None = None
    peers: bool = True


def sections(mode: str, size: Size, wanted: Wanted) -> list[Section]:
    """The sections of `regimes`, `grid` or `scaling`.

    Raises:
        StudyError: an unknown name, a regime that needs the real run at a shape that has none.
    """
    paths = _chosen(wanted)
    if mode == "scaling":
        return _curves(size, wanted, paths)
    sizes = [size] if wanted.shapes is None else [_shape(text, size) for text in wanted.shapes]
    everything = mode == "grid" or wanted.generators is not None
    names = _regimes(wanted, sizes, size, ("initial",) if everything else tuple(REGIMES))
    found = []
    for s in sizes:
        for name in names:
            there = (p for p in paths if p.key in ALWAYS or everything or wanted.paths is not None or name in p.regimes)
            found.append(Section(name, s, tuple(p for p in there if not p.teacher or name in WITH_TEACHER)))
    return found


def _chosen(wanted: Wanted) -> list[Path]:
    """The paths that flags leave, those that are always measured first."""
    names = wanted.generators
    for name in names or ():
        try:
            fenchel.generator(name)
        except ValueError as error:
            raise StudyError(f"--generators: {error}") from error
    paths = [path for path in all_paths(names) if wanted.peers or path.kind != "peer"]
    if wanted.paths is None:
        return [path for path in paths if names is None or path.generator in names or path.key in ALWAYS]
    known = {path.key for path in all_paths(names)} | set(EVERY)
    unknown = set(wanted.paths) - known
    if unknown:
        shown = sorted({*EVERY, *(path.key for path in all_paths(()))})
        raise StudyError(
            f"--paths: got {', '.join(sorted(unknown))}; pass generators ({', '.join(generators.every())}), FAMILY:GENERATOR, "
            f"or some of {', '.join(shown)}"
        )
    keep = {*wanted.paths, *ALWAYS}
    return [path for path in paths if path.key in keep or path.family in keep]


def _regimes(wanted: Wanted, sizes: Sequence[Size], base: Size, default: tuple[str, ...]) -> tuple[str, ...]:
    names = default if wanted.regimes is None else wanted.regimes
    unknown = set(names) - set(REGIMES)
    if unknown:
        raise StudyError(f"--regimes: got {', '.join(sorted(unknown))}; pass some of {', '.join(REGIMES)}")
    other = [s.shape for s in sizes if s.shape != base.shape]
    if not other:
        return names
    if wanted.regimes is not None and not TRAINED.keys().isdisjoint(names):
        raise StudyError(
            f"--shapes: got {other[0]} with --regimes {', '.join(names)}; the real run has the shape {base.shape}: "
            f"pass some of {', '.join(name for name in REGIMES if name not in TRAINED)}"
        )
    return tuple(name for name in names if name not in TRAINED)


def _shape(text: str, size: Size) -> Size:
    try:
        n, d, v = (int(part) for part in text.lower().split("x"))
        if min(n, d, v) < 1:
            raise ValueError
    except ValueError as error:
        raise StudyError(f"--shapes: got {text!r}; pass NxDxV, as in {size.shape}") from error
    return size.shaped(n, d, v)


def _curves(size: Size, wanted: Wanted, paths: Sequence[Path]) -> list[Section]:
    if wanted.shapes is not None or wanted.regimes is not None:
        raise StudyError("--scaling has shapes and a regime of its own: leave out --shapes and --regimes")
    asked = wanted.paths is not None or wanted.generators is not None
    drawn = tuple(path for path in paths if path.key in ALWAYS or asked or path.key in CURVES)
    n, d, v = CURVE_AT
    if size.name == "quick":
        shapes = [(32 * k, 16, 256) for k in (1, 2, 4)] + [(64, 16, 128 * k) for k in (1, 4)]
    else:
        shapes = [(k, d, v) for k in ROWS] + [(n, d, k) for k in CLASSES if k != v]
    return [Section("initial", size.shaped(*shape), drawn) for shape in shapes]
