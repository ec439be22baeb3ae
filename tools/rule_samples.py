"""Calls to audit flow rules with: shapes uneven, prime, of size 1 and 0, by family of ops."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rule_case import Call

aten = torch.ops.aten
SIZES = (1, 2, 3, 4, 5, 6, 7, 11)


class Gen:
    """Seeded sizes and tensors."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def n(self, *sizes: int) -> int:
        return self.rng.choice(sizes or SIZES)

    def shape(self, ndim: int) -> tuple[int, ...]:
        """One shape in eight has a dim of size 0."""
        found = [self.n() for _ in range(ndim)]
        if ndim and self.rng.random() < 0.125:
            found[self.rng.randrange(ndim)] = 0
        return tuple(found)

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def dim(self, ndim: int) -> int:
        return self.rng.randrange(-ndim, ndim) if ndim else 0

    def dims(self, ndim: int) -> list[int]:
        return sorted(self.rng.sample(range(ndim), self.rng.randint(1, ndim)))

    def t(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float64)

    def ints(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.torch)

    def mask(self, *shape: int) -> torch.Tensor:
        return self.ints(2, *shape).bool()

    def maybe(self, value: Any) -> Any:
        return value if self.flag() else None

    def thin(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        kept = [1 if self.rng.random() < 0.25 else s for s in shape]
        return tuple(kept[self.rng.randint(0, len(kept)) if self.flag() else 0 :])


def some(g: Gen, *ranks: int) -> torch.Tensor:
    return g.t(*g.shape(g.n(*(ranks or (1, 2, 3, 4)))))


Sampler = Callable[[Gen], Iterator[tuple[Any, ...]]]
SAMPLERS: dict[Any, Sampler] = {}


def overloads(names: str) -> list[Any]:
    found = []
    for name in names.split():
        packet, _, overload = name.partition(".")
        found.append(getattr(getattr(aten, packet), overload or "default"))
    return found


def samples(names: str) -> Callable[[Sampler], Sampler]:
    """The decorated generator yields `(*args)` or `(*args, {kwargs})` for each overload."""

    def register(make: Sampler) -> Sampler:
        for target in overloads(names):
            assert target not in SAMPLERS, target
            SAMPLERS[target] = make
        return make

    return register


def calls(target: Any, seed: int) -> Iterator[Call]:
    """The calls of `target` that its sampler, or its schema alone, gives for `seed`."""
    make = SAMPLERS.get(target)
    if make is None:
        yield from by_schema(target, Gen(seed))
        return
    for given in make(Gen(seed)):
        kwargs = given[-1] if given and isinstance(given[-1], dict) else {}
        yield Call(target, given[:-1] if kwargs else given, kwargs)


def by_schema(target: Any, g: Gen) -> Iterator[Call]:
    """A call of an op whose tensors broadcast to each other, in the first dtype it takes."""
    shape = g.shape(g.n(0, 1, 2, 3, 4))
    for dtype in (torch.float64, torch.int64, torch.bool):
        args: list[Any] = []
        for argument in target._schema.arguments:
            if argument.kwarg_only or argument.has_default_value():
                break
            kind = str(argument.type)
            if "Tensor" in kind:
                other = shape if not args else g.thin(shape)
                values = g.t(*other) if dtype.is_floating_point else g.ints(5, *other)
                args.append(values.to(dtype))
            elif kind in ("number", "Scalar", "float"):
                args.append(g.n(1, 2, 3) if dtype != torch.bool else True)
            elif kind == "int":
                args.append(2 if argument.name != "dtype" else torch.float32)
            elif kind == "bool":
                args.append(g.flag())
            elif kind in ("str", "Optional[str]"):
                args.append("floor")
            else:
                raise NotImplementedError(f"{target} takes {kind}: write a sampler")
        try:
            target(*args)
        except (RuntimeError, NotImplementedError, TypeError):
            continue
        yield Call(target, tuple(args))
        return
    raise NotImplementedError(f"{target} takes none of the arguments tried: write a sampler")
