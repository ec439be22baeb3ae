"""Wrong sharded programs: lies told about the text that ranks run, and about the runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Hooks, Task
from tools.mutate_runtime import RUNTIME

LOCAL = "local statistics"
"""A rank's own rows taken as if all ranks' were like them."""


@attrs.frozen(eq=False)
class Lie:
    """`kind` of lie, `what` was changed, and the task and runtime that tell it. `exact`: it is told
    by the runtime, whose text only a run sees."""

    kind: str
    what: str
    task: Task
    hooks: Hooks
    exact: bool = False


def lies(task: Task, hooks: Hooks) -> Iterator[Lie]:
    """Every lie there is about a task, in the order of its lines, then those of the runtime."""
    for k, source in enumerate(task.sources):
        rows = source.text.splitlines()
        local = list(rows)
        for n, row in enumerate(rows):
            for kind, new in _of_row(row, task):
                told = _told(task, k, [*rows[:n], new, *rows[n + 1 :]])
                yield Lie(kind, f"{source.module}: {row.strip()} → {new.strip()}", told, hooks)
                if kind == LOCAL:
                    local[n] = new
        if sum(a != b for a, b in zip(rows, local, strict=True)) > 1:
            yield Lie(LOCAL, f"{source.module}: all of them", _told(task, k, local), hooks)
    text = "\n".join(source.text for source in task.sources)
    for lie in RUNTIME:
        if lie.ways is None or any(f"attention.{way}(" in text for way in lie.ways):
            yield Lie(lie.kind, f"{lie.file}: {lie.new}", task, lie.told(hooks), exact=True)


def _told(task: Task, k: int, rows: list[str]) -> Task:
    """The task with other rows for the text of its source `k`."""
    sources = list(task.sources)
    sources[k] = attrs.evolve(sources[k], text="\n".join(rows) + "\n")
    return attrs.evolve(task, sources=tuple(sources))


def judge(lie: Lie) -> str:
    """ "unknown" or "refuted" as the prover says; of what it proves, "equivalent" if a run in the
    finite field finds no difference, "fails" if it raises, else "ACCEPTED", which is a failure."""
    found = prove_task(lie.task, lie.hooks, exact=lie.exact, refute=False)
    if found.verdict != "proved":
        return found.verdict
    if not lie.exact:
        found = prove_task(lie.task, lie.hooks, exact=True)
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    if "ranks fail" in run.text:
        return "fails"
    return "equivalent" if run.text.startswith("equal") else "ACCEPTED"


_CALL = re.compile(r"^(\s*)(\w+) = (ranks|attention)\.(\w+)\((.*)\)(\S*)$")


def _of_row(row: str, task: Task) -> Iterator[tuple[str, str]]:
    found = _CALL.match(row)
    if found is None:
        yield from _of_op(row, task)
        return
    space, name, where, function, inner, after = found.groups()
    args = _split(inner)

    def made(new: list[str], call: str = f"{where}.{function}") -> str:
        return f"{space}{name} = {call}({', '.join(new)}){after}"

    def put(k: int, text: str) -> list[str]:
        return [*args[:k], text, *args[k + 1 :]]

    if where == "attention":
        yield from _of_attention(args, made, put)
    elif function in ("my_rows", "gather_rows", "fill_rows"):
        dim, outer, size, ranks, ring = args[1:6]
        if function != "my_rows":
            yield "missing collective", f"{space}{name} = {args[0]}"
        elif outer == "1":
            rows = f"ranks.local_rows({size}, {ranks}, {ring})"
            yield "local rows", f"{space}{name} = {args[0]}.narrow({dim}, 0, {rows})"
        if function == "gather_rows":
            alike = ", ".join([args[0]] * task.ranks)
            whole = f"aten.cat.default([{alike}], {dim}).narrow({dim}, 0, {outer}*({size}))"
            yield LOCAL, f"{space}{name} = {whole}{after}"
        yield "dropped tail", made(put(3, _plus(size, -1)))
        yield "wrong order", made(put(5, ranks if ring == "1" else "1"))
        if outer != "1":
            yield "wrong blocks", made(put(2, "1"))
        if function != "gather_rows":
            fill = args[7]
            yield "padding counts", made(put(7, "0.0" if fill != "0.0" else "1.0"))
    elif function == "join_sum":
        yield "missing collective", f"{space}{name} = {args[0]}"
        yield LOCAL, f"{space}{name} = aten.mul.Tensor({args[0]}, {args[1]} * {task.ranks})"
        yield "wrong scale", made(put(1, "0.5" if args[1] == "1.0" else "1.0"))
    elif function == "in_parts":
        given = args[3].strip("[]").split(", ")
        yield "wrong rows", made(put(1, _plus(args[1], 1)))
        yield "wrong rows", made(put(2, str(int(args[1]) + 1)))
        if len(given) > 1:
            yield "wrong rows", made(put(3, f"[{', '.join([given[-1], *given[1:]])}]"))
        yield "wrong blocks", made(put(5, args[5].replace(", 1, ", ", 2, ", 1)))
    elif function == "fixed_rows":
        yield "local rows", made(put(2, _plus(args[2], 1)))
    elif function == "cross_entropy":
        own = ", ".join(args[:6])
        local, share = f"aten.cross_entropy_loss.default({own})", 1 / task.ranks
        value = row.split(" = ", 1)[1]
        yield "missing collective", f"{space}{name} = {local}"
        yield "mean of means", f"{space}{name} = ranks.join_sum({local}, {share!r}, GROUP)"
        yield "wrong scale", f"{space}{name} = aten.mul.Tensor({value}, 2)"
        yield "wrong scale", f"{space}{name} = aten.div.Tensor({value}, {task.ranks})"
        yield "wrong scale", made(put(3, "2" if args[3] == "1" else "1"))
        yield "ignored tokens", made(put(4, "-1"))


def _of_attention(args: list[str], made: Any, put: Any) -> Iterator[tuple[str, str]]:
    for k, arg in enumerate(args):
        key, _, value = arg.partition("=")
        if key == "band":
            left, right = value.strip("()").split(", ")
            for end in (left, right):
                if end != "None":
                    less = str(int(end) - 1)
                    band = (left, less) if end is right else (less, right)
                    yield "< for <=", made(put(k, f"band=({band[0]}, {band[1]})"))
                    more = str(int(end) + 1)
                    band = (left, more) if end is right else (more, right)
                    yield "< for <=", made(put(k, f"band=({band[0]}, {band[1]})"))
            yield "no mask", made(put(k, "band=(None, None)"))
        if key == "scale":
            yield "wrong scale", made(put(k, f"scale={float(value) * 2!r}"))
        if key in ("q_size", "k_size"):
            yield "dropped tail", made(put(k, f"{key}={_plus(value, -1)}"))
        if key == "ring":
            yield "wrong order", made(put(k, f"ring={1 if value != '1' else 2}"))
        if key == "rule":
            for a, b in (
                ("le.", "lt."),
                ("ge.", "gt."),
                ("lt.", "le."),
                ("eq.", "ne."),
                ("gt.", "ge."),
                ("logical_and", "logical_or"),
                ("bitwise_and", "bitwise_or"),
            ):
                if a in value:
                    yield "< for <=", made(put(k, f"rule={value.replace(a, b, 1)}"))
        if key in ("ulysses_group", "ring_group"):
            other = value.replace("ulysses", "x").replace("ring'", "ulysses'").replace("x", "ring")
            yield "wrong group", made(put(k, f"{key}={other}"))
    yield "wrong operands", made([args[1], args[0], *args[2:]])
    yield "wrong operands", made([args[0], args[2], args[1], *args[3:]])
    if not any(a.startswith("band") for a in args):
        yield "local mask", made([*args, "band=(None, 0)"])


def _of_op(row: str, task: Task) -> Iterator[tuple[str, str]]:
    """Heads, positions and labels dealt otherwise by plain ops."""
    heads = re.match(
        r"^(\s*\w+ = aten\.reshape\.default\(\w+, )\[(\d+), (\w+), (\d+), (\d+)\]\)$", row
    )
    if heads:
        head, b, s, h, d = heads.groups()
        if h != d:
            yield "wrong heads", f"{head}[{b}, {s}, {d}, {h}]).transpose(2, 3)"
        yield "wrong heads", f"{head}[{b}, {h}, {s}, {d}]).transpose(1, 2)"
    ranges = re.match(r"^(\s*\w+ = aten\.arange\.default\()(\d+|length)(.*)$", row)
    if ranges:
        head, count, rest = ranges.groups()
        yield "wrong positions", f"{head}1, {_plus(count, 1)}{rest}".replace("default", "start")
    shift = re.match(r"^(\s*)(\w+) = aten\.slice\.Tensor\((\w+), 1, 1, [^,()]+\)$", row)
    if shift:
        space, name, x = shift.groups()
        yield "label shift", f"{space}{name} = {x}.narrow(1, 0, {x}.shape[1] - 1)"
    weight = re.match(r"^(\s*)(\w+) = self\.(\w+)\((\w+)\)$", row)
    if weight and weight[3].endswith(("k_proj", "up_proj")):
        other = {"k_proj": "v_proj", "up_proj": "gate_proj"}[weight[3]]
        yield "wrong weight", f"{weight[1]}{weight[2]} = self.{other}({weight[4]})"
    scale = re.match(r"^(\s*\w+ = aten\.(?:mul|div)\.Tensor\(\w+, )([\d.]+)\)$", row)
    if scale:
        yield "wrong scale", f"{scale[1]}{float(scale[2]) * task.ranks})"
    yield from _of_route(row)


def _of_route(row: str) -> Iterator[tuple[str, str]]:
    """Rows sorted, counted, put back or given to experts otherwise."""
    for pattern, new in (
        (r"aten\.sort\.default\((\w+)\)", r"aten.sort.default(\1, -1, True)"),
        (r"aten\.topk\.default\((\w+), (\d+)\)", r"aten.topk.default(\1, \2, -1, False)"),
        (r"floor_divide\.default\((\w+), (\d+)\)", r"remainder.Scalar(\1, \2)"),
        (r"floor_divide\.default\((\w+), (\d+)\)", r"floor_divide.default(\1, \g<2>1)"),
        (r"histc\.default\((\w+), (\d+), max=\d+\)", r"histc.default(\1, \2, max=\2)"),
        (r"cumsum\.default\((\w+), 0, ", r"_to_copy.default(\1, "),
        (r"index_put\.default\(\w+, \[(\w+)\], \w+\)", r"clone.default(\1)"),
        (r"(arange\w*)\.narrow\(0, 0, ", r"\1.narrow(0, 1, "),
        (r"(grouped_mm\w*\.default)\((\w+), (\w+)", r"\1(\2, \3.flip(0)"),
        (r"aten\.index\.Tensor\((\w+), \[(\w+)\]\)", r"aten.clone.default(\1)"),
        (r"softmax\.int\((\w+), -1\)", r"softmax.int(\1, 0)"),
        (r"div\.Tensor\((getitem\w*), sum\w*\)", r"clone.default(\1)"),
    ):
        found = re.sub(pattern, new, row)
        if found != row:
            yield "wrong route", found
    rows = re.match(
        r"^(\s*\w+ = aten\.reshape\.default\(index\w*, )\[(\d+), (\d+), (\d+)\]\)$", row
    )
    if rows:
        head, n, k, width = rows.groups()
        yield "wrong route", f"{head}[{k}, {n}, {width}]).transpose(0, 1)"


def _plus(text: str, by: int) -> str:
    """A size, as a number or as an expression, and `by` more."""
    return str(int(text) + by) if text.isdigit() else f"{text} {'+' if by > 0 else '-'} {abs(by)}"


def _split(inner: str) -> list[str]:
    """Arguments at the outermost level."""
    found, depth, quote, start = [], 0, "", 0
    for k, c in enumerate(inner):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == "," and depth == 0:
            found.append(inner[start:k].strip())
            start = k + 1
    return [*found, inner[start:].strip()]
