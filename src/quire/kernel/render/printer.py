"""Loop IR expressions as C++."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import sympy
import torch

from quire.errors import MissingRuleError
from quire.kernel import index as ix
from quire.kernel.analysis import address
from quire.kernel.ir import (
    Buffer,
    Call,
    Expr,
    Fold,
    Length,
    Num,
    Read,
    Size,
    Soft,
    Var,
    children,
    kind,
)

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "quire::bf16",
    torch.float16: "quire::fp16",
    torch.int64: "std::int64_t",
    torch.int32: "std::int32_t",
    torch.int16: "std::int16_t",
    torch.int8: "std::int8_t",
    torch.uint8: "std::uint8_t",
    torch.bool: "bool",
}
_INFIX = {
    "sub": "-", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&&", "or": "||", "div": "/",
    "tdiv": "/",
}  # fmt: skip
_NAMED = {"max": "larger", "min": "smaller"}


class Names:
    """What buffers, variables and lengths are called within one phase, by first appearance."""

    def __init__(self, lengths: Mapping[sympy.Symbol, int], scratch: Mapping[str, int]) -> None:
        self.lengths, self._scratch = lengths, scratch
        self.slots: dict[Buffer, int] = {}
        self.private: dict[Buffer, str] = {}
        self._vars: dict[str, str] = {}
        self._fresh = 0

    def buffer(self, b: Buffer) -> str:
        if b.role == "private":
            return self.private.setdefault(b, f"p{len(self.private)}")
        return f"s{self.slots.setdefault(b, len(self.slots))}"

    def declarations(self) -> list[str]:
        lines = [
            f"const auto s{k} = q.template array<{c_type(b)}>({k});" for b, k in self.slots.items()
        ]
        lines += [
            f"const auto {name} = q.template scratch<{c_type(b)}>({self._scratch[b.name]});"
            for b, name in self.private.items()
        ]
        return lines

    def fresh(self, stem: str) -> str:
        self._fresh += 1
        return f"{stem}{self._fresh}"

    def size(self, size: Size) -> str:
        return str(size) if isinstance(size, int) else self._sympy(size)

    def _sympy(self, e: sympy.Expr) -> str:
        if e.is_Integer:
            return str(int(e))  # type: ignore[arg-type]
        if isinstance(e, sympy.Symbol):
            return f"q.length({self.lengths[e]})"
        if isinstance(e, sympy.Add | sympy.Mul):
            sign = " + " if isinstance(e, sympy.Add) else " * "
            return f"({sign.join(self._sympy(a) for a in e.args)})"  # type: ignore[arg-type]
        if isinstance(e, sympy.Pow) and e.exp.is_Integer and int(e.exp) > 0:  # type: ignore[arg-type]
            return f"({' * '.join([self._sympy(e.base)] * int(e.exp))})"  # type: ignore[arg-type]
        name = type(e).__name__
        args = [self._sympy(a) for a in e.args]  # type: ignore[arg-type]
        if name in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
            return f"({args[0]} / {args[1]})"
        if name in ("Mod", "PythonMod"):
            return f"({args[0]} % {args[1]})"
        if name == "floor":
            number, by = sympy.fraction(sympy.together(e.args[0]))
            return f"({self._sympy(number)} / {self._sympy(by)})"
        if name in ("Max", "Min"):
            return f"q.{'larger' if name == 'Max' else 'smaller'}({', '.join(args)})"
        raise MissingRuleError(
            f"the size {e} cannot be written in C++",
            allowed="sums, products, quotients, remainders, smaller and larger of lengths",
            fix="capture with that length fixed, or quire.chunk the model",
        )


def c_type(b: Buffer) -> str:
    base = f"quire::{b.scheme}<{b.shape[-1]}>" if b.scheme else TYPES[b.dtype]
    return f"const {base}" if b.role == "state" else base


Lines = list[str]
Env = Mapping[str, str]
"""What each variable is called."""


def literal(value: float) -> str:
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        return f"index_t({value})"
    if math.isnan(value):
        return "q.nan()"
    if math.isinf(value):
        return "q.infinity()" if value > 0 else "(-q.infinity())"
    return f"real({_float(value)})"


def _float(value: float) -> str:
    text = repr(value)
    return (text if any(ch in text for ch in ".en") else text + ".0") + "f"


class Printer:
    """Expressions under an environment; shared parts are named once, before the statement."""

    def __init__(self, names: Names, env: Env) -> None:
        self.names, self.env = names, dict(env)
        self.lines: list[str] = []
        self._bound: dict[Expr, str] = {}

    def statement(self, e: Expr) -> str:
        """`e` as a C++ expression; `lines` are to stand before it."""
        for part in _shared(e):
            if part not in self._bound:
                text = self.text(part)
                name = self.names.fresh("v")
                self.lines.append(f"const auto {name} = {text};")
                self._bound[part] = name
        return self.text(e)

    def text(self, e: Expr) -> str:
        if e in self._bound:
            return self._bound[e]
        match e:
            case Num(value):
                return literal(value)
            case Var(name, _):
                return self.env[name]
            case Length(size):
                return self.names.size(size)
            case Read():
                return f"q.load({self.names.buffer(e.buffer)}, {self.text(address(e))})"
            case Call(op, args):
                return self._call(op, args, kind(e))
            case Fold() | Soft():
                raise TypeError("a fold outside a nest")
        raise TypeError(e)

    def _call(self, op: str, args: tuple[Expr, ...], of: str) -> str:
        texts = [self.text(a) for a in args]
        if op in ("add", "mul"):
            sign = " + " if op == "add" else " * "
            return f"({sign.join(_plain(t) for t in texts)})"
        if op == "neg":
            return f"(-{texts[0]})"
        if op == "not":
            return f"(!{texts[0]})"
        if op in _INFIX:
            return f"({texts[0]} {_INFIX[op]} {texts[1]})"
        if op == "select":
            if of == "float":
                texts[1:] = [f"real({t})" for t in texts[1:]]
            return f"({texts[0]} ? {texts[1]} : {texts[2]})"
        if op in ("idiv", "imod"):
            low, _ = ix.bound(args[0])
            if low is not None and low >= 0 and isinstance(args[1], Num) and args[1].value > 0:
                return f"({texts[0]} {'/' if op == 'idiv' else '%'} {args[1].value})"
        if op in ("max", "min"):
            return f"q.{_NAMED[op]}({', '.join(_typed(t, of) for t in texts)})"
        if op == "tobool":
            return f"bool({texts[0]})"
        return f"q.{op}({', '.join(texts)})"


def _plain(text: str) -> str:
    return text[8:-1] if text.startswith("index_t(") and text[8:-1].isdigit() else text


def _typed(text: str, of: str) -> str:
    return f"{'real' if of == 'float' else 'index_t'}({text})"


def _shared(e: Expr) -> list[Expr]:
    """Parts of `e` that occur more than once and are evaluated whatever branch is taken, inner
    ones first."""
    count: dict[Expr, int] = {}
    order: list[Expr] = []

    def go(x: Expr) -> None:
        count[x] = count.get(x, 0) + 1
        if count[x] > 1:
            return
        if isinstance(x, Call) and x.op in ("select", "and", "or"):
            go(x.args[0])
        else:
            for child in children(x):
                go(child)
        order.append(x)

    go(e)
    return [x for x in order if count[x] > 1 and isinstance(x, Call | Read) and x != e]


def loop(
    names: Names, size: Size, body: Callable[[str], Sequence[str]], stem: str = "i"
) -> list[str]:
    """A loop over `size`; `body` is given the index's name."""
    index = names.fresh(stem)
    return [
        f"q.each({names.size(size)}, [&](auto {index}) {{",
        *("  " + line for line in body(index)),
        "});",
    ]


def nested(names: Names, axes: Sequence[Var], env: Env, body: Callable[[Env], Lines]) -> Lines:
    if not axes:
        return body(env)
    head, rest = axes[0], axes[1:]
    return loop(names, head.size, lambda i: nested(names, rest, {**env, head.name: i}, body))
