"""Phases → one C++ translation unit.

Phases that print the same text are one function; which weights and buffers each call works on
comes from a table of pointers. A sequence of calls that repeats becomes a loop whose count is
data too, so neither source nor compile time grows with depth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs
import sympy

from quire.kernel.analysis import free, weights_of
from quire.kernel.arena import scratch_offsets
from quire.kernel.ir import ALONE, Attend, Buffer, Nest
from quire.kernel.render import nests
from quire.kernel.render.attend import attend
from quire.kernel.render.contraction import dot_plan, factor
from quire.kernel.render.printer import Names
from quire.kernel.schedule import Phase
from quire.kernel.segments import Segment

ROWS_AT_ONCE = 1024
"""Rows of a contraction before what follows them in the same unit is run, while they are in
cache."""

INDENT = "  "


@attrs.frozen
class Loop:
    """Calls `body` (indices of phase functions, or loops) as often as `repeats[counter]`."""

    body: tuple[int | Loop, ...]
    counter: int


@attrs.frozen
class Rendered:
    source: str
    slots: tuple[tuple[Buffer, ...], ...]
    """The buffers of each phase, in order of execution."""
    private: tuple[tuple[str, ...], ...]
    """The buffers that each phase's scratch arrays p0, p1 … stand for."""
    calls: tuple[int, ...]
    """The phase function of each phase."""
    repeats: tuple[int, ...]
    scratch: int
    """Bytes of scratch that each worker needs."""


def render(
    phases: Sequence[Phase],
    lengths: Sequence[sympy.Symbol],
    most: Mapping[sympy.Symbol, int],
    title: str,
) -> Rendered:
    """The translation unit of `phases`, and what fills its tables."""
    places = {s: k for k, s in enumerate(lengths)}
    texts: dict[tuple[str, str], int] = {}
    counts: list[int] = []
    slots, private, calls, scratch = [], [], [], 0
    for phase in phases:
        offsets, size = scratch_offsets(phase, most)
        scratch = max(scratch, size)
        names = Names(places, offsets)
        body = _phase(names, phase)
        ahead = _ahead(names, phase)
        head = names.declarations()
        main = "\n".join(INDENT + line for line in [*head, *body])
        early = "\n".join(INDENT + line for line in [*_used(head, ahead), *ahead])
        key = (main, early)
        if key not in texts:
            texts[key] = len(texts)
            counts.append(len(names.slots))
        calls.append(texts[key])
        slots.append(tuple(names.slots))
        private.append(tuple(b.name for b in names.private))
    repeats: list[int] = []
    sequence = rolled(calls, repeats)
    source = _unit(title, list(texts), counts, sequence)
    return Rendered(source, tuple(slots), tuple(private), tuple(calls), tuple(repeats), scratch)


def _used(head: Sequence[str], body: Sequence[str]) -> list[str]:
    words = {w for line in body for w in re.findall(r"\bs\d+\b", line)}
    return [line for line in head if line.split()[2] in words]


def _phase(names: Names, phase: Phase) -> list[str]:
    lines: list[str] = []
    for nest in phase.private:
        lines += nests.whole(names, nest)
    total = sum(s.cost * s.outer * s.inner for s in phase.segments)
    start = 0
    for segment in phase.segments:
        lines += _segment(names, segment, start, total)
        start += segment.cost * segment.outer * segment.inner
    for nest in phase.attends:
        lines += attend(names, nest)
    return lines


def _span(segment: Segment, start: int, total: int) -> str:
    units = segment.outer * segment.inner
    return f"q.share({start}, {segment.cost}, {units}, {total}, {_align(segment)})"


def _align(segment: Segment) -> int:
    units = segment.outer * segment.inner
    weights = [weights_of(share.nest) for share in segment.shares]
    alone = {ALONE[w.buffer.scheme] for w in weights if w and w.buffer.scheme}
    for by in sorted(alone | {16, 4}, reverse=True):
        if segment.inner % by == 0 and (units >= 16 * by or by in alone):
            return by
    return 1


def _segment(names: Names, segment: Segment, start: int, total: int) -> list[str]:
    o, r0, r1 = (names.fresh(s) for s in ("o", "a", "b"))
    rows = max(len(s.offsets) for s in segment.shares)
    chunk = max(1, ROWS_AT_ONCE // rows)
    if len(segment.shares) == 1:
        chunk = segment.inner
    body = [line for share in segment.shares for line in nests.part(names, share, o, r0, r1)]
    return [
        f"q.units({_span(segment, start, total)}, {segment.inner}, {chunk}, "
        f"[&](auto {o}, auto {r0}, auto {r1}) {{",
        f"  (void){o};",
        *(INDENT + line for line in body),
        "});",
    ]


def _ahead(names: Names, phase: Phase) -> list[str]:
    """Prefetches of the weights that a worker reads first, safe before the barrier."""
    lines: list[str] = []
    total = sum(s.cost * s.outer * s.inner for s in phase.segments)
    start = 0
    for segment in phase.segments:
        share = segment.shares[0]
        weight = weights_of(share.nest)
        plan = dot_plan(share.nest, share.axes) if isinstance(share.nest, Nest) else None
        if weight is not None and plan is not None and plan.w is weight:
            row, buffer = factor(weight, plan.row), weight.buffer
            if len(free(weight)) == 1 + len(share.nest.over) and row:  # type: ignore[union-attr]
                s = names.fresh("w")
                first = (
                    f"({s}.lo / {segment.inner}) * {share.outer_step} + "
                    f"({s}.lo % {segment.inner}) * {share.inner_step} + {share.base}"
                )
                lines += [
                    f"const auto {s} = {_span(segment, start, total)};",
                    f"if ({s}.lo < {s}.hi) q.prefetch({names.buffer(buffer)}, ({first}) * {row}, "
                    f"{row} * ({s}.hi - {s}.lo));",
                ]
        start += segment.cost * segment.outer * segment.inner
    return lines


def rolled(calls: Sequence[int], repeats: list[int]) -> list[int | Loop]:
    """The sequence with its longest repetition as a loop, again before and after it."""
    n = len(calls)
    best = (0, 0, 0, 0)  # calls saved, start, period, count
    for period in range(1, n // 2 + 1):
        k = 0
        while k + 2 * period <= n:
            count = 1
            while calls[k + count * period : k + (count + 1) * period] == calls[k : k + period]:
                count += 1
            saved = (count - 1) * period
            if saved > best[0]:
                best = (saved, k, period, count)
            k += max(1, saved)
    if best[0] == 0:
        return list(calls)
    _, start, period, count = best
    before = rolled(calls[:start], repeats)
    inner = rolled(calls[start : start + period], repeats)
    repeats.append(count)
    here = Loop(tuple(inner), len(repeats) - 1)
    return [*before, here, *rolled(calls[start + count * period :], repeats)]


def _first(sequence: Sequence[int | Loop]) -> int | None:
    if not sequence:
        return None
    head = sequence[0]
    return head if isinstance(head, int) else _first(head.body)


def _calls(
    sequence: Sequence[int | Loop], counts: Sequence[int], after: str, depth: int
) -> list[str]:
    """Each phase, then what it may prefetch for the one that follows, then the barrier. The call
    ends with a barrier of the team's own, which is the last phase's."""
    lines: list[str] = []
    for k, item in enumerate(sequence):
        following = _first(sequence[k + 1 :])
        ahead = after if following is None else f"ahead_{following}(q);"
        if isinstance(item, Loop):
            i, n = f"n{depth}", f"q.repeats({item.counter})"
            again = f"ahead_{_first(item.body)}(q);"
            inner = f"if ({i} + 1 < {n}) {{ {again} }} else {{ {ahead} }}"
            lines += [
                f"for (index_t {i} = 0; {i} < {n}; ++{i}) {{",
                *(INDENT + line for line in _calls(item.body, counts, inner, depth + 1)),
                "}",
            ]
        else:
            line = f"q.enter(); phase_{item}(q);"
            last = depth == 0 and k + 1 == len(sequence)
            lines.append(line if last else f"{line} q.skip({counts[item]}); {ahead} q.wait();")
    return lines


def _unit(
    title: str,
    texts: Sequence[tuple[str, str]],
    counts: Sequence[int],
    sequence: Sequence[int | Loop],
) -> str:
    functions = []
    for k, (main, early) in enumerate(texts):
        for name, body in (("phase", main), ("ahead", early)):
            functions.append(
                f"template <class Q>\ninline void {name}_{k}(Q& q) {{\n"
                f"  using real [[maybe_unused]] = typename Q::real;\n"
                f"  using index_t [[maybe_unused]] = typename Q::index;\n"
                f"  (void)q;\n{body}\n}}\n"
            )
    step = "\n".join(INDENT + line for line in _calls(sequence, counts, "", 0))
    return (
        f"// {title}\n// Written by Quire. Bodies only: the rest is in quire/native.hpp.\n"
        '#include "native.hpp"\n\n'
        + "\n".join(functions)
        + "\ntemplate <class Q>\ninline void step(Q& q) {\n"
        "  using index_t [[maybe_unused]] = typename Q::index;\n" + step + "\n}\n\n"
        '#include "entry.hpp"\n'
    )


__all__ = ["Attend", "Loop", "Rendered", "render", "rolled"]
