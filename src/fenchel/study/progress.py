"""What the terminal shows while a study runs."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Names under which objectives are known elsewhere.
SHOWN = {"kl": "cross-entropy"}


def shown(objective: str) -> str:
    """Name of an objective for people.

    >>> shown("kl"), shown("alpha:1.5")
    ('cross-entropy', 'alpha:1.5')
    """
    return SHOWN.get(objective, objective)


class Display:
    """One bar over all steps of all runs, and a line for each run that ends; `name` says what a run is called."""

    def __init__(
        self, console: Console, total: int, done: int, name: Callable[[str], str] = shown, unit: str = "steps"
    ) -> None:
        self.console, self.name = console, name
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            # Nothing to animate in a log file: there the lines of finished runs are the progress.
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=total, completed=done)

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, objective: str, seed: int, resumed: int) -> None:
        """A run starts, at step `resumed` where it was interrupted before."""
        self.label = f"{self.name(objective)} seed {seed}"
        self.began = time.perf_counter()
        self.progress.update(self.task, description=self.label)
        if resumed:
            self.console.print(f"{self.label}: continues from step {resumed}")

    def step(self, step: int, steps: int, loss: float, tokens_per_second: float) -> None:
        """An optimiser step is done."""
        text = f"{self.label} [dim]step {step}/{steps} loss {loss:.3f} {tokens_per_second:,.0f} tokens/s"
        self.progress.update(self.task, advance=1, description=text)

    def reach(self, label: str, done: int) -> None:
        """Something that is counted otherwise than in steps has come so far."""
        self.progress.update(self.task, description=label, completed=done)

    def skip(self, steps: int) -> None:
        """Steps that an interrupted run had made before."""
        self.progress.update(self.task, advance=steps)

    def end(self, loss: float, tokens_per_second: float) -> None:
        """The run that began last is finished."""
        seconds = time.perf_counter() - self.began
        self.console.print(
            f"{self.label}: loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s, {seconds:.1f} s", highlight=False
        )
