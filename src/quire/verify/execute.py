"""The emitted Python, run with symbolic tensors and sizes in the place of torch's.

The text is what `Chunked.source` holds. Names it may use are those below; any other raises
NoMeaning. A `for` over `range` runs its body a few times and proves by induction what it does for
any number of parts of any size: see `loop.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import maximum, minimum, prove
from quire.verify.meaning import MEANING, VIEWS
from quire.verify.meaning.join import pad
from quire.verify.meaning.opaque import opaque
from quire.verify.meaning.table import apply, named
from quire.verify.memory import Tensor, empty, fresh
from quire.verify.number import Int, Real, divided, plain, wrap
from quire.verify.poly import ONE, Poly, variable
from quire.verify.value import NoMeaning, NotShown, Value, require
from quire.verify.views import dim_in, narrow

MAY_COPY = {"reshape", "flatten", "contiguous", "to"}
IN_PLACE = {"softmax", "_softmax"}


def given(value: Any) -> Any:
    """An argument as meanings take it."""
    if isinstance(value, Proxy):
        return value.tensor.value()
    if isinstance(value, Int):
        return value.poly
    if isinstance(value, Real):
        return value.term
    if isinstance(value, list | tuple):
        return [given(v) for v in value]
    return value


class Proxy:
    """A tensor as the emitted text sees it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.storage = tensor.storage

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(wrap(s) for s in self.tensor.sizes)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def device(self) -> str:
        return "device"

    def dim(self) -> int:
        return self.tensor.ndim

    def narrow(self, dim: int, lo: Any, length: Any) -> Proxy:
        d = dim_in(self.tensor.ndim, dim)
        return Proxy(self.tensor.seen(narrow(self.tensor.sizes, d, plain(lo), plain(length))))

    def copy_(self, other: Any) -> Proxy:
        self.tensor.write(given(other), exact=False)
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inplace = name.endswith("_")
        packet = getattr(torch.ops.aten, name.rstrip("_") if inplace else name, None)
        if packet is None:
            raise NoMeaning(f"Tensor.{name}")

        def method(*args: Any, **kwargs: Any) -> Any:
            if args and name in ("view", "permute", "expand", "reshape", "repeat"):
                args = (args[0] if isinstance(args[0], list | tuple) else list(args),)
            if inplace:
                kwargs["out"] = self
            return call(packet, (self, *args), kwargs)

        return method

    def _binary(name: str) -> Any:  # type: ignore[misc]
        def method(self: Proxy, other: Any) -> Any:
            return call(getattr(torch.ops.aten, name), (self, other), {})

        return method

    __add__, __sub__, __mul__ = _binary("add"), _binary("sub"), _binary("mul")
    __truediv__ = _binary("div")
    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return call(torch.ops.aten.neg, (self,), {})


EXPECTED: list[Any] = []
"""The op that makes what the statement that is being run is named after, and the shapes and dtypes
of its results: an op known by name only has these where its arguments are the original's, and
where they are not, nothing is equal to its results."""


def call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op of the emitted program, `out=` included."""
    kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")}
    out = kwargs.pop("out", None)
    overload, known = named(target, args, kwargs)
    name = overload.overloadpacket.__name__
    known.pop("out", None)
    if name in VIEWS and out is None:
        return _viewed(name, known)
    plain_args = {k: given(v) for k, v in known.items()}
    result: Any
    target, facts = EXPECTED[-1] if EXPECTED else ("", ())
    if name in MEANING or name in VIEWS or str(overload) != target:
        result = apply(name, plain_args)
    else:
        result = opaque(target, plain_args, facts)
    if out is not None:
        store(name, result, out, [v for v in _flat(known.values()) if isinstance(v, Proxy)])
        return out
    if isinstance(result, tuple):
        return tuple(Proxy(fresh(r, name)) for r in result)
    return Proxy(fresh(result, name))


def store(name: str, result: Value, out: Proxy, operands: list[Proxy]) -> None:
    """Write an op's result to its `out` buffer, which must not hide what the op still reads."""
    from_same = [p for p in operands if p.storage is out.storage]
    for p in from_same:
        same = p.tensor.key == out.tensor.key
        elementwise = result.ndim == p.tensor.ndim and _pointwise(name)
        if not (same and (elementwise or name in IN_PLACE)) and not _apart(p.tensor, out.tensor):
            raise NotShown(f"{name} writes over {p.storage} while reading it")
    out.tensor.write(result)


def _pointwise(name: str) -> bool:
    return name in POINTWISE


POINTWISE = {
    "add", "sub", "mul", "div", "pow", "neg", "exp", "tanh", "sigmoid", "rsqrt", "sqrt", "cos",
    "sin", "erf", "abs", "maximum", "minimum", "silu", "relu", "where", "clone", "_to_copy", "gelu",
    "clamp", "clamp_min", "masked_fill", "log", "reciprocal", "square", "rsub", "addcmul", "copy",
}  # fmt: skip


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one storage share no element."""
    if any(s.back is None for s in b.steps):
        return False
    probe = [variable(f"u{k}", [0], [size - 1]) for k, size in enumerate(a.sizes)]
    return b.back(a.forward(probe))[0] is t.FALSE


def _viewed(name: str, known: dict[str, Any]) -> Any:
    first, *_ = known
    proxy = known[first]
    if not isinstance(proxy, Proxy):
        raise NoMeaning(f"{name} of {type(proxy).__name__}")
    shown = Shown(proxy.tensor)
    found = VIEWS[name](shown, **{k: given(v) for k, v in known.items() if k != first})
    if isinstance(found, tuple):
        return tuple(Proxy(proxy.tensor.seen(v)) for v in found)
    return Proxy(proxy.tensor.seen(found, copies=name in MAY_COPY))


class Shown:
    """What a view's meaning asks of a tensor: its shape."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.ndim, self.dtype = tensor.sizes, tensor.ndim, tensor.dtype


def _flat(values: Any) -> list[Any]:
    found = []
    for v in values:
        found += _flat(v) if isinstance(v, list | tuple) else [v]
    return found


# --- the names that emitted text uses ---------------------------------------------------------


class Namespace:
    """`aten`, `torch.ops.x`, and overloads of their packets."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return Namespace(getattr(self._target, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._target, args, kwargs)


class Torch:
    """The functions of `torch` that emitted text calls."""

    ops = Namespace(torch.ops)

    def empty(self, *shape: Any, dtype: Any = None, device: Any = None) -> Proxy:
        sizes = shape[0] if len(shape) == 1 else shape
        sizes = sizes if isinstance(sizes, list | tuple) else [sizes]
        return Proxy(empty(tuple(map(plain, sizes)), dtype or torch.float32, "a new buffer"))

    def empty_strided(
        self, shape: Any, stride: Any, dtype: Any = None, device: Any = None
    ) -> Proxy:
        return self.empty(shape, dtype=dtype)

    def empty_like(self, x: Proxy) -> Proxy:
        return self.empty(x.shape, dtype=x.dtype)

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if isinstance(value, torch.dtype | torch.memory_format):
            return value
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise NoMeaning(f"torch.{name}")
        return Namespace(packet)


def part(x: Proxy, dim: int, lo: Any, hi: Any, outer: Any = 1, fill: float | None = None) -> Proxy:
    """`kernels.part`: the indices `[lo, hi)` of `dim`, in each of its `outer` blocks; what lies
    outside is `fill`, or cut off."""
    dim = dim_in(x.tensor.ndim, dim)
    outer = plain(outer)
    if outer is not ONE:
        size = divided(x.tensor.sizes[dim], outer)[0]
        blocks = x.unflatten(dim, [wrap(outer), wrap(size)])
        return part(blocks, dim + 1, lo, hi, fill=fill).flatten(dim, dim + 1)
    size, lo, hi = x.tensor.sizes[dim], plain(lo), plain(hi)
    if fill is not None:
        require(prove(hi - lo, why="a part's length"), "a part of negative length")
        before_after = [0, 0] * (x.tensor.ndim - 1 - dim) + [-lo, hi - size]
        return Proxy(fresh(pad(x.tensor.value(), before_after, fill), "a padded part"))
    first, last = _cut(lo, hi, size)
    return x.narrow(dim, first, last - first)


def _cut(lo: Poly, hi: Poly, size: Poly) -> tuple[Poly, Poly]:
    lo = minimum(maximum(lo, 0), size)
    return lo, minimum(maximum(hi, lo), size)


def cut(lo: Any, hi: Any, size: Any) -> tuple[Any, Any]:
    first, last = _cut(plain(lo), plain(hi), plain(size))
    return wrap(first), wrap(last)


def put(out: Proxy, x: Proxy, dim: int, lo: Any, hi: Any, outer: Any = 1) -> None:
    """`kernels.put`: write `x` to the indices `[lo, hi)` of `dim`, in each of its blocks."""
    outer = plain(outer)
    if outer is not ONE:
        blocks = out.unflatten(dim, [wrap(outer), wrap(divided(out.tensor.sizes[dim], outer)[0])])
        rows = divided(x.tensor.sizes[dim], outer)[0]
        put(blocks, x.unflatten(dim, [wrap(outer), wrap(rows)]), dim + 1, lo, hi)
    else:
        out.narrow(dim, lo, plain(hi) - plain(lo)).tensor.write(given(x))


def causal_rows(
    query: Proxy, key: Proxy, value: Proxy, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: Any = 0, *, scale: Any = None, enable_gqa: bool = False,
) -> Proxy:  # fmt: skip
    """`flow.parts.causal_rows`: row i of the part sees the keys 0 … is_causal + i."""
    sdpa = apply(
        "scaled_dot_product_attention",
        {
            "query": given(query), "key": given(key), "value": given(value), "is_causal": True,
            "scale": scale, "enable_gqa": enable_gqa, "first": plain(is_causal),
        },
    )  # fmt: skip
    return Proxy(fresh(sdpa, "causal_rows"))


class Kernels:
    """`quire.runtime.kernels`: ops that write to a buffer, and slices of parts."""

    part = staticmethod(part)
    put = staticmethod(put)
    cut = staticmethod(cut)

    def softmax(
        self, x: Proxy, dim: int, half: Any = None, *, dtype: Any = None, out: Proxy
    ) -> Any:
        return call(torch.ops.aten.softmax.int, (x, dim), {"out": out})

    def copy(self, x: Proxy, *, out: Proxy, **_: Any) -> Any:
        return call(torch.ops.aten.clone.default, (x,), {"out": out})

    def embedding(self, weight: Proxy, ids: Proxy, *_: Any, out: Proxy) -> Any:
        return call(torch.ops.aten.embedding.default, (weight, ids), {"out": out})

    def linear_add(self, added: Proxy, x: Proxy, weight: Proxy, *, out: Proxy) -> Proxy:
        product = apply("linear", {"input": given(x), "weight": given(weight)})
        store("add", apply("add", {"self": given(added), "other": product}), out, [added])
        store("linear", out.tensor.value(), out, [x, weight])
        return out

    def __getattr__(self, name: str) -> Any:
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise NoMeaning(f"kernels.{name}")
        return Namespace(packet)
