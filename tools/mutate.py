"""Lies for the prover: applied programs with one seeded mistake each.

    python tools/mutate.py 500        mutants of small models of eight families, none accepted

A mutant that the prover accepts is run against the original at several part sizes: if nothing
differs it is counted as *equivalent* (a mistake that changes nothing), else as accepted.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator

import attrs

Edit = Callable[[], None]


@attrs.frozen
class Mutant:
    kind: str
    line: int
    source: str


def mutants(source: str, seed: int) -> Iterator[Mutant]:
    """One mutant after another, its place drawn at random among those of a random kind."""
    draw = random.Random(seed)
    tree = ast.parse(source)
    seen: set[str] = set()
    for _ in range(400):
        changed = copy.deepcopy(tree)
        places = list(_places(changed))
        kinds = sorted({kind for kind, _, _ in places})
        if not kinds:
            return
        kind = draw.choice(kinds)
        _, line, edit = draw.choice([p for p in places if p[0] == kind])
        edit()
        text = ast.unparse(ast.fix_missing_locations(changed))
        if text not in seen:
            seen.add(text)
            yield Mutant(kind, line, text)


def _places(tree: ast.Module) -> Iterator[tuple[str, int, Edit]]:
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name == "forward":
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                for kind, edit in _of_call(node):
                    yield kind, node.lineno, edit
            if isinstance(node, ast.For):
                for kind, edit in _of_loop(node):
                    yield kind, node.lineno, edit
            if isinstance(node, ast.Assign) and _word(node.targets[0]) == "b":
                yield "wrong last part", node.lineno, _set(node, "value", "a + step")
        yield from _of_slices(function)


def _of_call(node: ast.Call) -> Iterator[tuple[str, Edit]]:
    name = ast.unparse(node.func)
    args = node.args
    if name.endswith(".narrow") and len(args) == 3 and _word(args[1]) == "a":
        yield "shifted part", _put(args, 1, "a + 1")
        yield "shifted part", _put(args, 1, "max(a - 1, 0)")
        yield "missing rows", _put(args, 1, "0")
        if isinstance(args[0], ast.Constant):
            yield "wrong axis", _put(args, 0, str(args[0].value - 1 if args[0].value else 1))
    if name == "kernels.put" and len(args) >= 5:
        yield "shifted part", _put(args, 3, f"{ast.unparse(args[3])} + 1")
        yield "wrong axis", _put(args, 2, str(1 - args[2].value) if _const(args[2]) else "0")
        yield "overlapping parts", _put(args, 3, f"max({ast.unparse(args[3])} - 1, 0)")
    if name == "kernels.part":
        yield "dropped halo", _put(args, 2, f"{ast.unparse(args[2])} + 1")
        yield "dropped halo", _put(args, 3, f"{ast.unparse(args[3])} - 1")
        if any(k.arg == "fill" for k in node.keywords):
            yield "dropped halo", lambda: _drop(node, "fill")
    for k in node.keywords:
        if k.arg == "is_causal" and _word(k.value) == "a":
            yield "wrong mask offset", _set(k, "value", "a + 1")
            yield "wrong mask offset", _set(k, "value", "0")
        if k.arg == "scale":
            yield "wrong scale", _set(k, "value", f"2 * ({ast.unparse(k.value)})")
        if k.arg == "alpha" and "size" in ast.unparse(k.value):
            yield "wrong scale", _set(k, "value", "1")
        if k.arg == "out" and name in SWAPS:
            yield "other op", _set(node, "func", SWAPS[name])
    if name in ("torch.maximum",):
        yield "summed max", _set(node, "func", "torch.add")
    if name.endswith(".add_") and node.args:
        yield "fold forgotten", _attribute(node, "copy_")
    if name in ("torch.sub", "torch.div", "aten.matmul.default", "torch.bmm", "aten.bmm.default"):
        yield "swapped operands", lambda: args.__setitem__(slice(0, 2), [args[1], args[0]])
    if name in ("causal_rows", "aten.scaled_dot_product_attention.default") and len(args) > 2:
        yield "swapped operands", lambda: args.__setitem__(slice(1, 3), [args[2], args[1]])
    if "softmax" in name and len(args) > 1 and _const(args[1]):
        yield "softmax over the split dim", _put(args, 1, f"{ast.unparse(args[1])} - 1")
    if name in ("aten.transpose.int",) and len(args) == 3:
        yield "wrong axis", _put(args, 2, "0")
    if name in ("aten.sum.dim_IntList", "aten.mean.dim", "torch.mean", "torch.sum"):
        yield "wrong axis", _put(args, 1, "[0]")


SWAPS = {
    "torch.add": "torch.sub", "torch.mul": "torch.add", "kernels.gelu": "kernels.silu",
    "torch.tanh": "torch.sigmoid", "torch.exp": "torch.tanh", "kernels.silu": "kernels.gelu",
}  # fmt: skip


def _of_loop(node: ast.For) -> Iterator[tuple[str, Edit]]:
    call = node.iter
    if not isinstance(call, ast.Call) or len(call.args) != 3:
        return
    yield "missing part", _put(call.args, 0, "step")
    yield "missing part", _put(call.args, 1, "size - step")
    yield "overlapping parts", _put(call.args, 2, "max(step - 1, 1)")


def _of_slices(function: ast.FunctionDef) -> Iterator[tuple[str, int, Edit]]:
    """A slice read in the loop, and the tensor it is of read whole; a buffer taken for another;
    an input that was overwritten read in place of the output of an earlier step."""
    made: dict[str, ast.expr] = {}
    slots: dict[str, list[ast.Name]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            if isinstance(value, ast.Call) and ast.unparse(value.func).endswith(".narrow"):
                made[node.targets[0].id] = value.func.value  # type: ignore[attr-defined]
        if isinstance(node, ast.Name) and node.id.startswith("slot_"):
            slots.setdefault(node.id, []).append(node)
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        for k, arg in enumerate(node.args):
            if isinstance(arg, ast.Name) and arg.id in made and not _of_out(made[arg.id]):
                whole = ast.unparse(made[arg.id])
                yield "whole operand", node.lineno, _put(node.args, k, whole)
    for name, uses in slots.items():
        for use in uses:
            others = [s for s in slots if s != name]
            if others and isinstance(use.ctx, ast.Load):
                yield "buffer reused too early", use.lineno, _rename(use, others[0])


def _of_out(value: ast.expr) -> bool:
    return ast.unparse(value).startswith(("y", "slot"))


def _word(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _const(node: ast.AST) -> bool:
    return isinstance(node, (ast.Constant, ast.UnaryOp))


def _put(args: list[ast.expr], k: int, text: str) -> Edit:
    return lambda: args.__setitem__(k, ast.parse(text, mode="eval").body)


def _set(node: ast.AST, field: str, text: str) -> Edit:
    return lambda: setattr(node, field, ast.parse(text, mode="eval").body)


def _rename(node: ast.Name, name: str) -> Edit:
    return lambda: setattr(node, "id", name)


def _attribute(node: ast.Call, name: str) -> Edit:
    return lambda: setattr(node.func, "attr", name)


def _drop(node: ast.Call, name: str) -> None:
    node.keywords[:] = [k for k in node.keywords if k.arg != name]
