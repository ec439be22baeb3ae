"""Lines of a forward → one readable Python function for each call of each submodule.

A module's function holds the lines that were captured within it; calls of its submodules go
through these modules, so that hooks, checkpointing and FSDP on them work. Parameters are read
from the module that the line belongs to. A stretch of lines that runs on some rows at a time is a
function within the function, given to `ranks.in_parts`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import attrs

from quire.apply.shard import Line, Lines
from quire.errors import CaptureError
from quire.plan.shard.plan import Placed, Stretch


@attrs.frozen
class Function:
    """The `call`-th call of module `module` ("" for the root) as the source of a function."""

    module: str
    call: int
    source: str


@attrs.frozen(eq=False)
class _Items:
    items: tuple[Line | _Group | _Parts, ...]

    @cached_property
    def own(self) -> frozenset[str]:
        return frozenset(self.made)

    @cached_property
    def made(self) -> list[str]:
        return _made(self.items)

    @cached_property
    def inner(self) -> list[str]:
        """What the items read."""
        return [n for i in self.items for n in i.reads]

    @property
    def reads(self) -> list[str]:
        return self.inner


@attrs.frozen(eq=False)
class _Parts(_Items):
    """Items of one function that run on some rows at a time. `local` says how many rows there are
    in all."""

    stretch: Stretch
    local: str

    @property
    def reads(self) -> list[str]:
        return [*re.findall(r"‹(\w+)›", self.local), *self.inner]


@attrs.frozen(eq=False)
class _Group(_Items):
    """Items of one module."""

    module: str


def _made(items: Sequence[Line | _Group | _Parts]) -> list[str]:
    return [n for i in items for n in ([i.name] if isinstance(i, Line) else i.made)]


def functions(
    lines: Lines, names: Mapping[str, Sequence[str]], program: int = 0
) -> tuple[Function, ...]:
    """`names` gives, for each parameter, buffer or constant, all its names in the module tree.
    Calls of submodules say which `program` they are of, but for the first."""
    stretches = {n: (one, lines.locals[one.size]) for one in lines.stretches for n in one.nodes}
    root = _Group(_grouped(lines.lines, "", stretches), "")
    writer = _Writer(lines, names, program)
    writer.write(root, list(lines.inputs), list(lines.outputs))
    if left := {one.nodes[0] for one in lines.stretches} - writer.in_parts:
        raise CaptureError(f"ops from {', '.join(sorted(left))} on do not lie together in a module")
    return tuple(writer.functions)


def _grouped(
    lines: Sequence[Line], module: str, stretches: Mapping[str, tuple[Stretch, str]]
) -> tuple[Line | _Group | _Parts, ...]:
    """Runs of lines of one submodule as groups, and those of a stretch within `module`."""
    items: list[Line | _Group] = []
    at = 0
    while at < len(lines):
        child = _child(lines[at], module)
        if child is None:
            items.append(lines[at])
            at += 1
            continue
        end = at
        while end < len(lines) and _child(lines[end], module) == child:
            end += 1
        items.append(_Group(_grouped(lines[at:end], child, stretches), child))
        at = end
    return tuple(_parted(items, module, stretches))


def _parted(
    items: Sequence[Line | _Group], module: str, stretches: Mapping[str, tuple[Stretch, str]]
) -> Iterator[Line | _Group | _Parts]:
    def of(item: Line | _Group) -> tuple[Stretch, str] | None:
        one = stretches.get(_made([item])[0])
        return one if one is not None and one[0].module == module else None

    for one, run in itertools.groupby(items, of):
        if one is None:
            yield from run
        else:
            yield _Parts(tuple(run), *one)


def _child(line: Line, module: str) -> str | None:
    """The module directly within `module` that holds the line; None if `module` itself does."""
    stack = list(line.stack)
    if module in stack:
        stack = stack[stack.index(module) + 1 :]
    for path in stack:
        name = path.partition("@")[0]
        if name != module and (not module or name.startswith(module + ".")):
            return name
    return None


class _Writer:
    def __init__(self, lines: Lines, names: Mapping[str, Sequence[str]], program: int = 0) -> None:
        self.program = program
        self.state = dict(lines.state)
        self.names = names
        self.functions: list[Function] = []
        self.calls: dict[str, int] = {}
        self.in_parts: set[str] = set()
        """The first node of each stretch that was written."""

    def _own(self, state: str, module: str) -> str | None:
        """How a function of `module` reads a parameter; None if none of its names lies there."""
        for name in self.names.get(self.state[state], [self.state[state]]):
            if not module:
                return _access(name)
            if name.startswith(module + "."):
                return _access(name[len(module) + 1 :])
        return None

    def write(self, group: _Group, inputs: list[str], outputs: list[str]) -> int:
        """Write the function; the number of the call."""
        call = self.calls.get(group.module, 0)
        self.calls[group.module] = call + 1
        body = self._body(group.items, group.module, outputs)
        shown = [self._shown(o, group.module) if isinstance(o, str) else repr(o) for o in outputs]
        alone = len(shown) == 1 and group.module
        body.append(
            f"return {shown[0]}" if alone else f"return ({''.join(x + ', ' for x in shown)})"
        )
        head = f"def forward(self, {', '.join(inputs)}):" if inputs else "def forward(self):"
        source = "\n    ".join([head, *body]) + "\n"
        self.functions.append(Function(group.module, call, source))
        return call

    def _body(
        self, items: Sequence[Line | _Group | _Parts], module: str, outputs: list[str]
    ) -> list[str]:
        body: list[str] = []
        last = self._last_reads(items, outputs)
        for position, item in enumerate(items):
            if isinstance(item, Line):
                body.append(f"{item.name} = {self._shown(item.text, module)}")
            else:
                results = _used(items, position, outputs)
                write = self._call if isinstance(item, _Group) else self._parts
                body += write(item, module, results)  # type: ignore[arg-type]
            # Names of values no longer needed are dropped, so that their memory can be reused.
            dying = [n for n in last.get(position, ()) if n not in self.state]
            if dying:
                body.append(f"del {', '.join(dying)}")
        return body

    def _needs(self, item: _Group | _Parts, module: str) -> list[str]:
        """What is read of outside and must be given: all but weights that lie in `module`."""
        made = set(item.made)
        needs = list(dict.fromkeys(n for n in item.inner if n not in made))
        return [n for n in needs if n not in self.state or self._own(n, module) is None]

    def _call(self, item: _Group, module: str, results: list[str]) -> list[str]:
        given = self._needs(item, item.module)
        call = self.write(item, given, [f"‹{n}›" for n in results])
        path = item.module[len(module) + 1 :] if module else item.module
        shown = [self._shown(f"‹{n}›", module) for n in given]
        if call:
            shown.append(f"quire_call={call}")
        if self.program:
            shown.append(f"quire_program={self.program}")
        left = f"{', '.join(results)} = " if results else ""
        return [f"{left}{_access(path)}({', '.join(shown)})"]

    def _parts(self, item: _Parts, module: str, results: list[str]) -> list[str]:
        """The lines as a function of some rows, and its call. What it reads of outside is given to
        it: it runs again in backward, when names outside have been dropped."""
        one = item.stretch
        spread, made = dict(one.given), dict(one.made)
        needs = self._needs(item, module)
        cut = [n for n in needs if n in spread]
        whole = [n for n in needs if n not in spread]
        body = self._body(item.items, module, [f"‹{n}›" for n in results])
        shown = ", ".join(results)
        body.append(f"return {shown}")
        self.in_parts.add(one.nodes[0])
        call = [
            "rows",
            f"{self._shown(item.local, module)}, {one.rows}",
            f"[{', '.join(cut)}]",
            _places(spread[n] for n in cut),
            _places(made[n] for n in results),
            *(self._shown(f"‹{n}›", module) for n in whole),
        ]
        return [
            f"def rows({', '.join([*cut, *whole])}):",
            *(f"    {line}" for line in body),
            f"{shown} = ranks.in_parts({', '.join(call)})",
        ]

    def _shown(self, text: str, module: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            own = self._own(name, module) if name in self.state else None
            return own or name

        return re.sub(r"‹(\w+)›", value, text)

    def _last_reads(
        self, items: Sequence[Line | _Group | _Parts], outputs: list[str]
    ) -> dict[int, list[str]]:
        kept = {n for o in outputs if isinstance(o, str) for n in re.findall(r"‹(\w+)›", o)}
        last: dict[str, int] = {}
        for position, item in enumerate(items):
            for name in item.reads:
                last[name] = position
        inner = {n for i in items if not isinstance(i, Line) for n in i.made}
        known = {i.name for i in items if isinstance(i, Line)}
        found: dict[int, list[str]] = {}
        for name, position in last.items():
            item = items[position]
            within = not isinstance(item, Line) and name in item.own
            if name not in kept and not within and (name in known or name in inner):
                found.setdefault(position, []).append(name)
        return found


def _used(items: Sequence[Line | _Group | _Parts], position: int, outputs: list[str]) -> list[str]:
    """What the item makes that later ones read, or the function gives."""
    used = {n for other in items[position + 1 :] for n in other.reads}
    used |= {n for o in outputs if isinstance(o, str) for n in re.findall(r"‹(\w+)›", o)}
    return [n for n in _made([items[position]]) if n in used]


def _places(places: Iterable[Placed]) -> str:
    return "[" + ", ".join(f"({p.dim}, {p.outer}, {p.scale})" for p in places) + "]"


def _access(path: str) -> str:
    text = "self"
    for part in path.split("."):
        text += f"[{part}]" if part.isdigit() else f".{part}"
    return text
