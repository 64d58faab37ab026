"""Which passes over a row may be left out: those whose sums no result needs once a condition that is known before them holds.

An iteration of a fixed number of passes, whose state is `torch.where(done, state, next)` and whose `done` is `done | ...`, so ends where it is done: what a
`where` does not choose, and what stands beside a truth in an `or`, is not needed.
"""

from .lowered import CHOICE, EITHER, Loop, Lowered, Value

__all__ = ["skipped"]


def skipped(of: Lowered, loops: list[Loop], results: list[Value]) -> dict[int, Value]:
    """For each pass that may be left out, the condition; the last that will do, which is met first.

    Args:
        loops: those of the program, with what they write.
        results: numbers of the row that the program gives.
    """
    conditions = {}
    for form, arguments in of.numbers.values():
        if form in (CHOICE, EITHER) and arguments[0].text in of.numbers:
            conditions[arguments[0].text] = arguments[0]
    found: dict[int, Value] = {}
    for condition in sorted(conditions.values(), key=lambda c: c.level):
        needed = _Needed(of, loops, condition.text)
        for value in results:
            needed.number(value)
        for loop in loops:
            for _, value in loop.writes:
                needed.entry(value)
        for number, loop in enumerate(loops):
            if number >= condition.level and number not in needed.loops and not loop.writes:
                found[number] = condition
    return found


class _Needed:
    """The passes that are reached from what is asked for, if a condition holds."""

    def __init__(self, of: Lowered, loops: list[Loop], condition: str) -> None:
        self.of, self.loop_list, self.condition = of, loops, condition
        self.home = {name: i for i, loop in enumerate(loops) for name, _ in (*loop.sums, *loop.tops)}
        self.loops: set[int] = set()
        self.seen: set[str] = set()

    def holds(self, value: Value) -> bool:
        """Whether a truth follows from the condition."""
        form, arguments = self.of.numbers.get(value.text, ("", ()))
        return value.text == self.condition or (form == EITHER and any(self.holds(a) for a in arguments))

    def number(self, value: Value) -> None:
        """Asks for a number of the row."""
        waiting = [value]
        while waiting:
            x = waiting.pop()
            if x.entry:
                self.entry(x)
            if x.entry or x.text in self.seen or self.holds(x):
                continue
            self.seen.add(x.text)
            if x.text in self.home and self.home[x.text] not in self.loops:
                home = self.home[x.text]
                self.loops.add(home)
                waiting += [v for _, v in (*self.loop_list[home].sums, *self.loop_list[home].tops)]
            form, arguments = self.of.numbers.get(x.text, ("", ()))
            waiting += [arguments[1]] if form == CHOICE and self.holds(arguments[0]) else arguments

    def entry(self, value: Value) -> None:
        """Asks for an entry: the numbers in it."""
        waiting = [value]
        while waiting:
            x = waiting.pop()
            if not x.entry:
                self.number(x)
            elif x.text not in self.seen:
                self.seen.add(x.text)
                waiting += x.parts
