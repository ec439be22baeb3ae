"""Terms at concrete sizes and inputs: how meanings are compared with torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from quire.verify.poly import Atom, Poly, atom_of, bound, index
from quire.verify.term import Term
from quire.verify.value import Value

Env = Mapping[Atom, int]

FUNCTIONS = {
    "tanh": math.tanh, "sin": math.sin, "cos": math.cos, "sqrt": math.sqrt, "erf": math.erf,
    "rsqrt": lambda x: 1 / math.sqrt(x), "log": math.log, "abs": abs, "floor": math.floor,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "ceil": math.ceil,
}  # fmt: skip

ROWS = {
    "order.values": lambda x, down: x.sort(descending=down, stable=True)[0],
    "order.indices": lambda x, down: x.sort(descending=down, stable=True)[1],
    "order.places": lambda x, down: x.argsort(descending=down, stable=True).argsort(),
}


def tensor(value: Value, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`value` in double precision (or integers), its cuts read from `given`."""
    sizes = [integer(s, {}, given) for s in value.shape]
    flat = []
    for at in itertools.product(*map(range, sizes)):
        env = {}
        for k, (size, i) in enumerate(zip(value.shape, at, strict=True)):
            env[atom_of(index(k, size))] = i
        flat.append(scalar(value.scalar, env, given))
    dtype = {"real": torch.float64, "int": torch.int64, "bool": torch.bool}[value.kind]
    return torch.tensor(flat, dtype=dtype).reshape(sizes)


def integer(p: Poly, env: Env, given: Mapping[str, torch.Tensor]) -> int:
    total = 0
    for mono, c in p.terms:
        for x in mono:
            c *= _atom(x, env, given)
        total += c
    return total


def _atom(x: Atom, env: Env, given: Mapping[str, torch.Tensor]) -> int:
    if x in env:
        return env[x]
    if x.kind == "val":
        return int(scalar(x.args[0], env, given))
    args = [integer(a, env, given) for a in x.args]
    return {"min": min, "max": max, "div": lambda p, n: p // n}[x.kind](*args)


def scalar(t: Term | Poly, env: Env, given: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(t, Poly):
        return integer(t, env, given)

    def go(x: Any) -> Any:
        return scalar(x, env, given)

    op, args = t.op, t.args
    if op == "const":
        return float(args[0])
    if op == "int":
        return integer(args[0], env, given)
    if op in ("read", "bread"):
        return given[args[0]][tuple(integer(i, env, given) for i in args[1])].item()
    if op == "add":
        return float(args[0]) + sum(float(c) * go(x) for x, c in args[1])
    if op == "mul":
        total = float(args[0])
        for x, k in sorted(args[1], key=lambda f: f[0].op != "ind"):
            value = go(x)
            if value == 0 and k > 0:
                return 0.0
            total *= value**k
        return total
    if op in ("sum", "max", "min"):
        name = atom_of(bound(t.height, args[0]))
        items = [
            scalar(args[1], {**env, name: j}, given) for j in range(integer(args[0], env, given))
        ]
        return sum(items) if op == "sum" else (max if op == "max" else min)(items)
    if op == "row" and args[2] in ROWS:
        name = atom_of(bound(t.height, args[0]))
        size, place = integer(args[0], env, given), integer(args[3], env, given)
        items = [scalar(args[1], {**env, name: j}, given) for j in range(size)]
        return ROWS[args[2]](torch.tensor(items), args[4] == "True")[place].item()
    if op in ("max2", "min2"):
        return (max if op == "max2" else min)(map(go, args[0]))
    if op == "exp":
        return math.exp(go(args[0]))
    if op == "ind":
        return 1.0 if go(args[0]) else 0.0
    if op == "ite":
        return go(args[1]) if go(args[0]) else go(args[2])
    if op == "fn":
        return FUNCTIONS[args[0]](*map(go, args[1:]))
    if op == "ninf":
        return -math.inf
    if op == "trunc":
        return math.trunc(go(args[0]))
    return _truth(t, go)


def _truth(t: Term, go: Any) -> bool:
    op, args = t.op, t.args
    if op in ("true", "false"):
        return op == "true"
    if op == "ge":
        return go(args[0]) >= 0
    if op == "eq":
        return go(args[0]) == 0
    if op == "not":
        return not go(args[0])
    if op in ("and", "or"):
        return (all if op == "and" else any)(map(go, args[0]))
    if op == "cmp":
        x, y = go(args[1]), go(args[2])
        return {"lt": x < y, "le": x <= y, "eq": x == y}[args[0]]
    raise NotImplementedError(f"{op} at concrete sizes")
