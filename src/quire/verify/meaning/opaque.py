"""Ops known by name only: functions of all of their operands and of the place asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quire.verify import term as t
from quire.verify.poly import Poly, atom_of, variable
from quire.verify.value import Value, as_real, build, kind_of

Fact = tuple[Sequence[Any], torch.dtype]


def draws(target: Any, given: Mapping[str, Any]) -> bool:
    """Whether an op draws random numbers: it is no function of its operands alone."""
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    odds = [given[name] for name in ("p", "dropout", "dropout_p") if name in given]
    idle = any(given.get(name) is False for name in ("train", "training"))
    return not idle and (not odds or any(odds))


def opaque(name: str, given: Mapping[str, Any], outputs: Sequence[Fact]) -> Value | tuple[Any, ...]:
    """The results of op `name`, of the given shapes and dtypes. Equal arguments give equal ones;
    nothing else is known of them."""
    operands: list[t.Term] = []
    text = f"{name}({', '.join(f'{k}={_shown(v, operands)}' for k, v in given.items())})"
    found = []
    for k, (shape, dtype) in enumerate(outputs):

        def element(idx: list[Poly], k: int = k, dtype: torch.dtype = dtype) -> Any:
            x = t.make("fn", f"{text}.{k}", *operands, *map(t.of_int, idx))
            kind = kind_of(dtype)
            if kind == "bool":
                return t.compare("eq", x, t.ONE_)
            return t.int_of(x) if kind == "int" else x

        found.append(build(shape, dtype, element))
    return found[0] if len(found) == 1 else tuple(found)


def _shown(value: Any, operands: list[t.Term]) -> str:
    """An argument as text; tensors and sizes go to `operands`."""
    if isinstance(value, Value):
        operands.append(_whole(value))
        return f"tensor:{value.dtype}"
    if isinstance(value, Poly | t.Term):
        operands.append(as_real(value))
        return "size"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(v, operands) for v in value)}]"
    return repr(value)


def _whole(x: Value) -> t.Term:
    """All elements of a tensor as one term."""
    names = [variable("t", [0], [size - 1]) for size in x.shape]
    body = as_real(x.at(names))
    for size, name in zip(reversed(x.shape), reversed(names), strict=True):
        body = t.named("row", size, body, atom_of(name), "all")
    return body
