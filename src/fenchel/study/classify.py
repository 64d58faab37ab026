"""`fenchel compare --task classification`: one classifier, one table, several objectives, cross-validated."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fenchel.study.begin import machine
from fenchel.study.definitions import BINS, SMOOTHING
from fenchel.study.errors import StudyError, full_disk
from fenchel.study.objectives import checked_objectives
from fenchel.study.record import run_directory
from fenchel.study.request import check_least
from fenchel.study.runs import MANIFEST, existing, fingerprint, locked, write_json
from fenchel.study.tables import Table, read_table
from fenchel.study.words import count

OBJECTIVES = ("kl", "alpha:1.5", "js", "gce:0.7", "nce + rce", "ldr")


@dataclass(frozen=True)
class ClassifyRequest:
    """What was asked for. A study is continued only by the request that began it."""

    objectives: tuple[str, ...] = OBJECTIVES
    seeds: int = 5
    folds: int = 5
    data: str = "digits"
    label: str | None = None
    noise: float = 0.0
    long_tail: float = 1.0
    l2: float = 1e-3

    def record(self) -> dict[str, Any]:
        """As it is kept in the manifest."""
        path = Path(self.data).expanduser()
        return {
            **asdict(self),
            "objectives": list(self.objectives),
            "data": str(path.resolve()) if path.is_file() else self.data,
        }


def checked(request: ClassifyRequest) -> ClassifyRequest:
    """The request with the names that its objectives are recorded by; StudyError for anything unusable."""
    names = checked_objectives(request.objectives)
    check_least(("--seeds", request.seeds, 1), ("--folds", request.folds, 2))
    if not 0 <= request.noise < 1:
        raise StudyError(f"--noise must be a share of labels in [0, 1), got {request.noise:g}")
    if not 0 < request.long_tail <= 1:
        raise StudyError(f"--long-tail must be a ratio in (0, 1], got {request.long_tail:g}")
    if not 0 <= request.l2 < math.inf:
        raise StudyError(f"--l2 must be a number >= 0, got {request.l2:g}")
    return replace(request, objectives=names)


def classify(request: ClassifyRequest, out: Path, *, console: Console | None = None, command: str = "") -> Path:
    """Begin or continue the study in `out`; returns the path of its report.

    For every seed the rows are split into folds, and each fold is predicted by a model of the others: linear, on standardised features, its objective plus
    l2/2 times its squared weights minimised. All objectives see the same folds, wrong labels and missing rows.

    Raises:
        StudyError: bad arguments or data, an `out` that holds something else, a full disk.
    """
    from fenchel.study import classify_report

    console = Console(quiet=True) if console is None else console
    request = checked(request)
    table = read_table(request.data, request.label)
    counts = np.bincount(table.labels)
    rarest, fewest = table.classes[counts.argmin()], int(counts.min())
    if fewest < request.folds:
        way = f"pass at most {fewest}, or more rows" if fewest > 1 else "leave it out, or pass more rows of it"
        raise StudyError(f"--folds {request.folds}: class {rarest} has {count(fewest, 'row')}; {way}")
    with locked(out) as ours, full_disk(out):
        if existing(out, request.record(), ours=ours) is None:
            write_json(out / MANIFEST, _manifest(request, table, command))
        for seed in range(request.seeds):
            for name in request.objectives:
                directory = run_directory(out, name, seed)
                if (directory / "done.json").is_file():
                    continue
                directory.mkdir(parents=True, exist_ok=True)
                final = measured(*predicted(request, table, name, seed))
                write_json(directory / "final.json", final)
                write_json(directory / "done.json", {"finished": datetime.now(UTC).isoformat(timespec="seconds")})
                console.print(f"{name} seed {seed}: accuracy {final['accuracy']:.4f}", highlight=False, markup=False)
        return classify_report.write(out)


def _manifest(request: ClassifyRequest, table: Table, command: str) -> dict[str, Any]:
    counts = np.bincount(table.labels)
    config = {
        "task": "classification",
        "data": {"name": table.name, "rows": len(counts[table.labels]), "features": table.features.shape[1]},
        "classes": dict(zip(table.classes, counts.tolist(), strict=True)),
        "model": "linear, standardised features",
        "l2": request.l2,
        "folds": request.folds,
        "noise": request.noise,
        "long_tail": request.long_tail,
    }
    return {
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "objectives": list(request.objectives),
        "seeds": list(range(request.seeds)),
        "config": config,
        "request": request.record(),
        "hash": fingerprint(request.record(), config),
        "machine": machine(),
    }


def predicted(request: ClassifyRequest, table: Table, objective: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, V] that rows were given by models that had not seen them, and their labels [N]."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler

    from fenchel.estimators import FenchelClassifier

    p = np.zeros((len(table.labels), len(table.classes)))
    for train, test, labels in splits(request, table, seed):
        scaler = StandardScaler().fit(table.features[train])
        model = FenchelClassifier(objective, l2=request.l2, random_state=seed)
        with warnings.catch_warnings():
            # a fit that ends at max_iter is judged by what it predicts, as any other
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaler.transform(table.features[train]), labels)
        p[test] = model.predict_proba(scaler.transform(table.features[test]))
    return p, table.labels


def splits(request: ClassifyRequest, table: Table, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows to train on, rows to predict, labels to train on) of every fold; noise and long tail befall the training rows alone."""
    from sklearn.model_selection import StratifiedKFold

    random, classes = np.random.default_rng(seed), len(table.classes)
    folds = StratifiedKFold(request.folds, shuffle=True, random_state=seed)
    for rows, test in folds.split(table.features, table.labels):
        train = np.concatenate(
            [
                random.permutation(rows[table.labels[rows] == k])[:most]
                for k, most in enumerate(tail(np.bincount(table.labels[rows]), request.long_tail))
            ]
        )
        labels = table.labels[train].copy()
        wrong = random.random(len(train)) < request.noise
        labels[wrong] = (labels[wrong] + random.integers(1, classes, wrong.sum())) % classes
        # one row of every class keeps its label, so that no class is unknown
        first = np.unique(table.labels[train], return_index=True)[1]
        labels[first] = table.labels[train][first]
        yield train, test, labels


def tail(counts: np.ndarray, ratio: float) -> list[int]:
    """Rows that every class keeps: shrinking geometrically from the first class to `ratio` of that at the last, one at least.

    Example:
        >>> tail(np.array([100, 100, 100]), 0.01)
        [100, 10, 1]
        >>> tail(np.array([5, 7]), 1.0)
        [5, 7]
    """
    if ratio == 1:
        return counts.tolist()
    most = counts.max() * ratio ** (np.arange(len(counts)) / (len(counts) - 1))
    return np.minimum(counts, np.maximum(1, most.round())).astype(int).tolist()


def measured(p: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The numbers of predictions [N, V] for labels [N], as the report names them, and their reliability table."""
    from sklearn.metrics import f1_score

    n, classes = p.shape
    own, best = p[np.arange(n), y], p.argmax(1)
    hit, confidence = best == y, p.max(1)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    table, gap = [], 0.0
    for b in range(BINS):
        here = bins == b
        count = int(here.sum())
        mean = (float(confidence[here].mean()), float(hit[here].mean())) if count else (None, None)
        table.append({"bin": b, "count": count, "confidence": mean[0], "accuracy": mean[1]})
        gap += abs(float((confidence[here] - hit[here]).sum()))
    smooth = (1 - SMOOTHING) * own + SMOOTHING / classes
    return {
        "accuracy": float(hit.mean()),
        "macro_f1": float(f1_score(y, best, average="macro")),
        "log_loss": float(-np.log(smooth).mean()),
        "brier": float(((p - np.eye(classes)[y]) ** 2).sum(1).mean()),
        "ece": gap / n,
        "zero_target": float((own == 0).mean()),
        "support": float((p > 0).sum(1).mean()),
        "reliability": table,
    }
