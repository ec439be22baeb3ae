"""The table of meanings, and how a call's arguments are named by its schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quire.verify.poly import Poly
from quire.verify.value import NoMeaning, Value
from quire.verify.views import View, through

MEANING: dict[str, Callable[..., Any]] = {}
"""Op → function of its arguments by name: `Value`s, sizes as polynomials, plain numbers."""

VIEWS: dict[str, Callable[..., View | tuple[View, ...]]] = {}
"""Ops whose result is a map of their first operand's indices: `f(value, …)` gives the map."""


def means(*names: str) -> Callable[[Any], Any]:
    def put(function: Any) -> Any:
        for name in names:
            MEANING[name] = function
        return function

    return put


def views(*names: str) -> Callable[[Any], Any]:
    def put(function: Any) -> Any:
        for name in names:
            VIEWS[name] = function
        return function

    return put


def named(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The overload, and a call's arguments by the names of its schema, defaults filled in.

    `target` is an overload, or a packet whose first overload that takes the arguments is meant.
    """
    if isinstance(target, torch._ops.OpOverload):
        packet, overloads = target.overloadpacket, [target]
    else:
        packet = target
        overloads = [getattr(packet, name) for name in packet.overloads()]
        overloads.sort(key=lambda o: ("out" in o._overloadname, len(o._schema.arguments)))
    for overload in overloads:
        arguments = overload._schema.arguments
        if len(args) > sum(not a.kwarg_only for a in arguments):
            continue
        names = [a.name for a in arguments]
        if not set(kwargs) - {"out"} <= set(names):
            continue
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        fits = len(overloads) == 1 or all(
            _fits(a, given[a.name]) for a in arguments if a.name in given
        )
        if fits and all(n in given or n in defaults or n == "out" for n in names):
            known = {**defaults, **given}
            return overload, {n: known[n] for n in names if n in known}
    raise NoMeaning(f"no overload of {packet} takes these arguments")


def _fits(argument: Any, value: Any) -> bool:
    kind = str(argument.type)
    if isinstance(value, Value) or hasattr(value, "storage"):
        return "Tensor" in kind
    if isinstance(value, list | tuple):
        return "List" in kind
    if isinstance(value, int | float | Poly) and not isinstance(value, bool):
        return "Tensor" not in kind or ("Optional" not in kind and kind == "number")
    return True


def means_of(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a call: a `Value`, or a tuple of them. Raises NoMeaning."""
    overload, given = named(target, args, kwargs)
    return apply(overload.overloadpacket.__name__, given)


def apply(name: str, given: dict[str, Any]) -> Any:
    if name in VIEWS:
        first = next(iter(given.values()))
        found = VIEWS[name](**given)
        if isinstance(found, tuple):
            return tuple(through(first, v) for v in found)
        return through(first, found)
    if name not in MEANING:
        raise NoMeaning(f"no meaning for aten.{name}")
    return MEANING[name](**given)
