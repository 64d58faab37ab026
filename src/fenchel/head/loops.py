"""A loop of a row program in C.

A long loop is written as several, each over a few hundred entries at a time. A CPU works on what follows before it has finished what comes first, as far ahead
as it holds instructions; where an entry takes hundreds of them one after another (a logarithm, then an exponential, then a division), that is not even the next
entry, and it waits. In short loops many entries are on the way at once; what one hands to the next lies in the first cache.
"""

from .lowered import Loop, Lowered, Value, broadcast

__all__ = ["written"]

# entries whose sums are taken in REAL, to be added up in double; and those that the parts of a long loop take turns over
BLOCK, SHORT = 1024, 256
# what an entry takes in one part of a loop, in additions, and what is too little for a part
PART, LITTLE = 40, 10


def written(
    of: Lowered,
    number: int,
    loop: Loop,
    used: dict[str, bool],
    first: dict[str, int],
    kept: dict[str, int],
    skip: Value | None,
) -> list[str]:
    """The statements.

    Args:
        used: the entries that the loop uses, in order: computed there (True) or read back.
        first: the loop that computes an entry first.
        kept: the scratch rows of those that are kept.
        skip: what must not hold, if the loop is to run.
    """
    parts = _parts(of, used)
    block = BLOCK if len(parts) == 1 else SHORT
    handed = _handed(of, loop, parts, {n for n in used if n in kept})
    lines = [f"    {'int64_t' if v.truth else 'double'} {n} = 0;" for n, v in loop.sums]
    lines += [f"    Vec {n}_v = splat(-INFINITY); Mask {n}_nan = {{0}};" for n, _ in loop.tops]
    lines.append(f"    {'' if skip is None else f'if (!{skip.text}) '}for (int64_t b = 0; b < v; b += {block}) {{")
    lines.append(f"        const int64_t end = b + {block} < v ? b + {block} : v, whole = end - (end - b) % LANES;")
    lines += [f"        {'Mask' if v.truth else 'Vec'} {n}_v = {{0}};" for n, v in loop.sums]
    lines += [f"        Vec {name}_t[{block} / LANES];" for name in handed]
    there: set[str] = set()
    for place, part in enumerate(parts):
        lines.append("        for (int64_t j = b; j < whole; j += LANES) {")
        last = place == len(parts) - 1
        lines += _pass(of, number, loop, part, used, first, kept, handed, there, last=last, tail=False)
        there |= set(part)
        lines.append("        }")
    lines += ["        if (whole < end) {", "            const int64_t j = whole, rest = end - j;"]
    lines.append("            const Mask live = lanes(rest); (void)live;")
    lines += _pass(of, number, loop, list(used), used, first, kept, set(), set(), last=True, tail=True)
    lines.append("        }")
    lines += [f"        {n} += {'counted' if v.truth else 'total'}({n}_v);" for n, v in loop.sums]
    lines.append("    }")
    lines += [f"    const double {n} = largest({n}_v, {n}_nan);" for n, _ in loop.tops]
    return lines


def _parts(of: Lowered, used: dict[str, bool]) -> list[list[str]]:
    """The entries that a loop uses, in consecutive parts of about the same effort."""
    parts: list[list[str]] = [[]]
    spent, left = 0.0, sum(of.efforts[name] for name, computed in used.items() if computed)
    for name, computed in used.items():
        effort = of.efforts[name] if computed else 0
        if spent + effort > PART and spent > 0 and left > LITTLE:
            parts.append([])
            spent = 0.0
        parts[-1].append(name)
        spent, left = spent + effort, left - effort
    return parts


def _handed(of: Lowered, loop: Loop, parts: list[list[str]], kept: set[str]) -> set[str]:
    """The entries that one part of a loop leaves for a later one."""
    at = {name: k for k, part in enumerate(parts) for name in part}
    later = {p.text for name, k in at.items() for p in of.definitions[name][1].parts if at.get(p.text, k) < k}
    later |= {v.text for _, v in loop.writes if at.get(v.text, len(parts)) < len(parts) - 1}
    return {name for name in later if name not in kept and not _loads(of, name)}


def _loads(of: Lowered, name: str) -> bool:
    return of.definitions[name][0].startswith("IN(")


def _pass(
    of: Lowered,
    number: int,
    loop: Loop,
    part: list[str],
    used: dict[str, bool],
    first: dict[str, int],
    kept: dict[str, int],
    handed: set[str],
    there: set[str],
    *,
    last: bool,
    tail: bool,
) -> list[str]:
    """What is done to LANES entries, or to those that are left: by one part of a loop; `there`: the parts before it."""
    lines: list[str] = []
    wanted = {p.text for name in part for p in of.definitions[name][1].parts if p.entry}
    wanted |= {v.text for _, v in loop.writes if v.entry} if last else set()
    for name in (n for n in used if n in part or (n in there and n in wanted)):
        definition, value = of.definitions[name]
        kind = "Mask" if value.truth else "Vec"
        computed = used[name] and name in part
        if computed or _loads(of, name):
            text = _access(definition, tail)
        elif name in handed:
            text = f"({kind}){name}_t[(j - b) / LANES]"
        else:
            text = _access(f"READ(scratch + {kept[name]} * (v + 80))", tail)
        lines.append(f"            const {kind} {name} = {text};")
        if computed and name in kept and first[name] == number:
            lines.append("            " + _write(f"scratch + {kept[name]} * (v + 80) + j", name, tail))
        elif computed and name in handed:
            lines.append(f"            {name}_t[(j - b) / LANES] = (Vec){name};")
    for n, v in loop.sums:
        if v.text in part and v.truth:
            lines.append(f"            {n}_v -= {v.text}{' & live' if tail else ''};")
        elif v.text in part:
            lines.append(f"            {n}_v += {f'choose(live, {v.text}, splat(0))' if tail else v.text};")
    for n, v in loop.tops:
        if v.text in part:
            inside = f"choose(live, {v.text}, splat(-INFINITY))" if tail else v.text
            lines.append(f"            {n}_v = vlargest({inside}, {n}_v); {n}_nan |= (Mask)({inside} != {inside});")
    if last:
        for where, v in loop.writes:
            lines.append("            " + _write(f"{where} + j", v.text if v.entry else broadcast(v), tail))
    return lines


def _access(definition: str, tail: bool) -> str:
    """IN(k) and READ(p) as loads."""
    if definition.startswith("IN("):
        at = f"in[{definition[3:-1]}] + j"
    elif definition.startswith("READ("):
        at = f"{definition[5:-1]} + j"
    else:
        return definition
    return f"take({at}, rest)" if tail else f"*(const Vec *)({at})"


def _write(at: str, text: str, tail: bool) -> str:
    return f"put({at}, {text}, rest);" if tail else f"*(Vec *)({at}) = {text};"
