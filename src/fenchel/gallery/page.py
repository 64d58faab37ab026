"""The page of the gallery, made from the results alone."""

from __future__ import annotations

from collections.abc import Mapping

from fenchel.gallery.checks import Check
from fenchel.gallery.figures import svg
from fenchel.gallery.paper import Paper
from fenchel.gallery.result import Result, judge

NOT_RUN = "not run yet"

_HEAD = """\
# Gallery

One small experiment per paper: does its central claim show, here, on data that fits a laptop? Every verdict on this page is computed. An experiment
states checks with bounds and measures them over several seeds; a check passes if its whole 95 % interval keeps the bounds. The interval is Student's t over
seeds, of paired differences where two methods are compared; for what must always hold it is the worst seed. All pass: *shown*. Some: *partly*. None: *not
shown*. Where a check was chosen or changed after a look at reported seeds, the notes say so. A claim that does not show on digits may well hold at the
scale of its paper: what is said here is what was measured here.

`make gallery` runs everything and writes this page; `python docs/build_gallery.py` writes it again from the numbers in `src/fenchel/gallery/results`.
`fenchel papers` lists the papers, `fenchel papers show P065` says what one is, `fenchel papers run P065` runs it. Each paper is one file,
`src/fenchel/gallery/p065.py` for P065.
"""


def number(x: float) -> str:
    """Three significant digits, without an exponent where that is short.

    Example:
        >>> [number(x) for x in (0.012345, 12345.6, 0.0, 1e-16, 250.0)]
        ['0.0123', '12346', '0', '1e-16', '250']
    """
    if x == 0 or x != x:
        return "0" if x == 0 else "-"
    if abs(x) >= 1000:
        return f"{x:.0f}"
    return f"{x:.3g}"


def interval(check: Check) -> str:
    """The 95 % interval of a check, or what stands in its place."""
    if check.low != check.low:
        return "one seed"
    return "worst seed" if check.low == check.high else f"[{number(check.low)}, {number(check.high)}]"


def page(papers: Mapping[str, Paper], results: Mapping[str, Result], figures: str = "gallery") -> str:
    """The text of the page; `figures` is where the pictures lie, seen from the page."""
    parts = [_HEAD, _overview(papers, results)]
    parts += [_section(paper, results[name], figures) for name, paper in papers.items() if name in results]
    return "\n".join(parts)


def _overview(papers: Mapping[str, Paper], results: Mapping[str, Result]) -> str:
    rows = ["| | Paper | Objectives | Verdict |", "|---|---|---|---|"]
    for name, paper in papers.items():
        said = NOT_RUN
        if name in results:
            checks, verdict = judge(paper, results[name])
            said = f"{verdict} ({sum(check.passes for check in checks)} of {len(checks)})"
        names = ", ".join(f"`{objective}`" for objective in paper.objectives)
        entry = f"[{name}](#{anchor(paper)})" if name in results else name
        rows.append(f"| {entry} | {paper.title} | {names} | {said} |")
    return "\n".join(rows) + "\n"


def _heading(paper: Paper) -> str:
    return f"{paper.id} {paper.title}"


def anchor(paper: Paper) -> str:
    """Where on the page a paper is."""
    kept = "".join(c for c in _heading(paper).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(paper: Paper, result: Result, figures: str) -> str:
    checks, verdict = judge(paper, result)
    rows = ["| Check | Estimate | 95 % interval | Needed | |", "|---|---|---|---|---|"]
    for check in checks:
        passed = "passes" if check.passes else "fails"
        rows.append(f"| {check.statement} | {number(check.estimate)} | {interval(check)} | {check.needed} | {passed} |")
    scale = "" if result.scale == 1 else f" A rehearsal at scale {result.scale:g}: it shows nothing."
    lines = [
        f"## {_heading(paper)}",
        "",
        f"{_source(paper.source)}. **Claim:** {paper.claim}",
        "",
        f"**Verdict: {verdict}.**{scale}",
        "",
        paper.setup,
        "",
        *rows,
        "",
        *([paper.notes, ""] if paper.notes else []),
        f"![{paper.title}]({figures}/{paper.id.lower()}.svg)",
        "",
        f"*{result.seeds} seeds, {result.seconds:g} s of one core ({result.processor}, {result.cores} cores), {result.date}, "
        f"commit {result.commit}, {result.versions}.*",
        "",
    ]
    return "\n".join(lines)


def _source(source: str) -> str:
    kind, _, number = source.partition(" ")
    if kind == "arXiv" and number:
        return f"[{source}](https://arxiv.org/abs/{number})"
    return source


def pictures(papers: Mapping[str, Paper], results: Mapping[str, Result]) -> dict[str, str]:
    """The figures of the results by file name."""
    return {f"{name.lower()}.svg": svg(papers[name], result.measured) for name, result in results.items()}
