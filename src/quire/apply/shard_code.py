"""Lines of a forward → one readable Python function for each call of each submodule.

A module's function holds the lines that were captured within it; calls of its submodules go
through these modules, so that hooks, checkpointing and FSDP on them work. Parameters are read
from the module that the line belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

from quire.apply.shard import Line, Lines


@attrs.frozen
class Function:
    """The `call`-th call of module `module` ("" for the root) as the source of a function."""

    module: str
    call: int
    source: str


@attrs.frozen
class _Group:
    module: str
    items: tuple[Line | _Group, ...]

    @property
    def made(self) -> list[str]:
        return [n for i in self.items for n in (i.made if isinstance(i, _Group) else [i.name])]

    @property
    def reads(self) -> list[str]:
        return [n for i in self.items for n in i.reads]


def functions(lines: Lines, names: Mapping[str, Sequence[str]]) -> tuple[Function, ...]:
    """`names` gives, for each parameter, buffer or constant, all its names in the module tree."""
    root = _Group("", _grouped(lines.lines, ""))
    writer = _Writer(lines, names)
    writer.write(root, list(lines.inputs), list(lines.outputs))
    return tuple(writer.functions)


def _grouped(lines: Sequence[Line], module: str) -> tuple[Line | _Group, ...]:
    """Runs of lines of one submodule as groups."""
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
        items.append(_Group(child, _grouped(lines[at:end], child)))
        at = end
    return tuple(items)


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
    def __init__(self, lines: Lines, names: Mapping[str, Sequence[str]]) -> None:
        self.state = dict(lines.state)
        self.names = names
        self.functions: list[Function] = []
        self.calls: dict[str, int] = {}

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
        body: list[str] = []
        last = self._last_reads(group, outputs)
        for position, item in enumerate(group.items):
            if isinstance(item, Line):
                body.append(f"{item.name} = {self._shown(item.text, group.module)}")
            else:
                body.append(self._call(group, item, position, outputs))
            # Names of values no longer needed are dropped, so that their memory can be reused.
            dying = [n for n in last.get(position, ()) if n not in self.state]
            if dying:
                body.append(f"del {', '.join(dying)}")
        shown = [self._shown(o, group.module) if isinstance(o, str) else repr(o) for o in outputs]
        alone = len(shown) == 1 and group.module
        body.append(
            f"return {shown[0]}" if alone else f"return ({''.join(x + ', ' for x in shown)})"
        )
        head = f"def forward(self, {', '.join(inputs)}):" if inputs else "def forward(self):"
        source = "\n    ".join([head, *body]) + "\n"
        self.functions.append(Function(group.module, call, source))
        return call

    def _call(self, group: _Group, item: _Group, position: int, outputs: list[str]) -> str:
        made = set(item.made)
        needs = list(dict.fromkeys(n for n in item.reads if n not in made))
        given = [n for n in needs if n not in self.state or self._own(n, item.module) is None]
        used = {n for other in group.items[position + 1 :] for n in other.reads}
        used |= {n for o in outputs if isinstance(o, str) for n in re.findall(r"‹(\w+)›", o)}
        results = [n for n in item.made if n in used]
        call = self.write(item, given, [f"‹{n}›" for n in results])
        path = item.module[len(group.module) + 1 :] if group.module else item.module
        shown = [self._shown(f"‹{n}›", group.module) for n in given]
        if call:
            shown.append(f"quire_call={call}")
        left = f"{', '.join(results)} = " if results else ""
        return f"{left}{_access(path)}({', '.join(shown)})"

    def _shown(self, text: str, module: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            own = self._own(name, module) if name in self.state else None
            return own or name

        return re.sub(r"‹(\w+)›", value, text)

    def _last_reads(self, group: _Group, outputs: list[str]) -> dict[int, list[str]]:
        kept = {n for o in outputs if isinstance(o, str) for n in re.findall(r"‹(\w+)›", o)}
        last: dict[str, int] = {}
        for position, item in enumerate(group.items):
            for name in item.reads:
                last[name] = position
        inner = {n for i in group.items if isinstance(i, _Group) for n in i.made}
        known = {i.name for i in group.items if isinstance(i, Line)}
        found: dict[int, list[str]] = {}
        for name, position in last.items():
            item = group.items[position]
            within = isinstance(item, _Group) and name in item.made
            if name not in kept and not within and (name in known or name in inner):
                found.setdefault(position, []).append(name)
        return found


def _access(path: str) -> str:
    text = "self"
    for part in path.split("."):
        text += f"[{part}]" if part.isdigit() else f".{part}"
    return text
