"""What the text of a rank's program calls: `aten`, `torch`, methods of tensors."""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_, minimum
from quire.verify.meaning import MEANING, VIEWS
from quire.verify.meaning.opaque import draws, opaque
from quire.verify.meaning.table import apply, named
from quire.verify.poly import poly
from quire.verify.shard.length import Length, number
from quire.verify.shard.order import ranked
from quire.verify.value import NoMeaning, Value, build


class Local:
    """A tensor of this rank. There is nothing that writes to one."""

    def __init__(self, value: Value) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(map(number, self.value.shape))

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def dim(self) -> int:
        return self.value.ndim

    def __getitem__(self, at: Any) -> Any:
        """`x[:, [0, 0, 1]]` and `x[:, :n]`."""
        if not (isinstance(at, tuple) and len(at) == 2 and at[0] == slice(None)):
            raise NoMeaning(f"x[{at}]")
        if isinstance(at[1], slice):
            return call(torch.ops.aten.slice.Tensor, (self, 1, at[1].start, at[1].stop), {})
        if isinstance(at[1], list):
            return Local(_chosen(self.value, 1, at[1]))
        raise NoMeaning(f"x[{at}]")

    def movedim(self, source: int, to: int) -> Any:
        order = [d for d in range(self.dim()) if d != source % self.dim()]
        order.insert(to % self.dim(), source % self.dim())
        return call(torch.ops.aten.permute.default, (self, order), {})

    def new_zeros(self, *shape: Any) -> Any:
        sizes = shape[0] if len(shape) == 1 else shape
        return call(torch.ops.aten.full.default, (list(sizes), 0.0), {"dtype": self.dtype})

    def contiguous(self) -> Local:
        return self

    def __mul__(self, other: Any) -> Any:
        return call(torch.ops.aten.mul, (self, other), {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name.endswith("_"):
            raise AttributeError(name)
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise NoMeaning(f"Tensor.{name}")

        def method(*args: Any, **kwargs: Any) -> Any:
            sizes = name in ("view", "permute", "reshape")
            if args and isinstance(args[0], int | Length) and sizes:
                args = (list(args),)
            return call(packet, (self, *args), kwargs)

        return method


def _chosen(x: Value, dim: int, at: list[int]) -> Value:
    """Elements of `dim` by a list of fixed numbers."""
    shape = [len(at) if d == dim else s for d, s in enumerate(x.shape)]
    repeats = max(at.count(at[0]), 1)
    regular = all(n == min(at[0] + k // repeats, at[-1]) for k, n in enumerate(at))

    def element(idx: list[Any]) -> Any:
        def read(n: Any) -> Any:
            return x.at([*idx[:dim], n, *idx[dim + 1 :]])

        if regular:  # each element so many times, and the last ones more often
            return read(minimum(divmod_(idx[dim], repeats)[0] + at[0], at[-1]))

        def pick(k: int) -> Any:
            own = read(poly(at[k]))
            return own if k == len(at) - 1 else t.ite(t.ge(k - idx[dim]), own, pick(k + 1))

        return pick(0)

    return build(shape, x.dtype, element)


EXPECTED: list[Any] = []
"""The op that makes what the statement that is being run is named after, what it is called, and its
results' facts: an op known by name only has these where it runs on whole tensors."""


def given(x: Any) -> Any:
    if isinstance(x, Local):
        return x.value
    if isinstance(x, Length):
        return x.poly
    if isinstance(x, list | tuple):
        return [given(y) for y in x]
    return x


def call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op of the text."""
    kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")}
    kwargs = {k: given(v) for k, v in kwargs.items()}
    overload, known = named(target, tuple(given(a) for a in args), kwargs)
    if overload._schema.is_mutable:
        raise NoMeaning(f"{overload}, which writes to a tensor")
    name = overload._schema.name.split("::")[1]
    if name in MEANING or name in VIEWS:
        return local(apply(name, known))
    target, label, facts = EXPECTED[-1] if EXPECTED else ("", "", ())
    if str(overload) != target:
        raise NoMeaning(f"no meaning for {overload}")
    if draws(overload, known) and any(
        isinstance(x, Value) and ranked(x.scalar) for x in known.values()
    ):
        raise NoMeaning(f"{overload} of a rank's rows: each rank draws numbers of its own")
    return local(opaque(label, known, facts))


def local(x: Any) -> Any:
    return tuple(map(Local, x)) if isinstance(x, tuple) else Local(x)


class Namespace:
    """`aten`, and overloads of its packets."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return Namespace(getattr(self.target, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call(self.target, args, kwargs)


class Torch:
    """`torch` in the text: dtypes, and functions that are ATen's."""

    ops = Namespace(torch.ops)

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return value
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise NoMeaning(f"torch.{name}")
        return Namespace(packet)
