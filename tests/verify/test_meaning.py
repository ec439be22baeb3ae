"""Meanings against torch: an interpreter of the meaning, at small shapes, equals the op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify.interpret import tensor
from quire.verify.meaning import means_of
from quire.verify.value import Value, cut

aten: Any = torch.ops.aten


def meaning(target: Any, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}

    def lift(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            name = f"x{len(tensors)}"
            tensors[name] = x
            return cut(name, list(x.shape), x.dtype)
        return [lift(v) for v in x] if isinstance(x, list) else x

    given_args = tuple(lift(a) for a in args)
    found = means_of(target, given_args, {k: lift(v) for k, v in kwargs.items()})
    values = found if isinstance(found, tuple) else (found,)
    return [tensor(v, tensors) for v in values if isinstance(v, Value)]


def agrees(target: Any, *args: Any, **kwargs: Any) -> None:
    want = target(*args, **kwargs)
    wants = list(want) if isinstance(want, tuple | list) else [want]
    for got, w in zip(meaning(target, *args, **kwargs), wants, strict=True):
        assert got.shape == w.shape
        torch.testing.assert_close(got, w.to(got.dtype), rtol=1e-4, atol=1e-5)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.2


sizes = st.integers(1, 4)
some = settings(max_examples=12, deadline=None, derandomize=True)

UNARY = [
    "tanh",
    "sin",
    "cos",
    "exp",
    "rsqrt",
    "sqrt",
    "neg",
    "relu",
    "abs",
    "reciprocal",
    "sigmoid",
]


@pytest.mark.parametrize("name", UNARY)
@some
@given(a=sizes, b=sizes)
def test_of_one_tensor(name: str, a: int, b: int) -> None:
    agrees(getattr(aten, name).default, rand(a, b))


@some
@given(a=sizes, b=sizes)
def test_activations(a: int, b: int) -> None:
    x = rand(a, b) * 6 - 3
    for name in ("silu", "gelu", "leaky_relu", "elu", "softplus", "sign"):
        agrees(getattr(aten, name).default, x)
    agrees(aten.gelu.default, x, approximate="tanh")
    agrees(aten.elu.default, x, 0.7, 1.3, 1.1)
    agrees(aten.softplus.default, x, 2.0, 3.0)


@some
@given(a=sizes, b=sizes, c=sizes, data=st.data())
def test_scatter_of_one_writer(a: int, b: int, c: int, data: Any) -> None:
    x, new = rand(a, b, c), rand(a, 1, c)
    at = torch.tensor([data.draw(st.integers(0, b - 1)) for _ in range(a)])
    index = at[:, None, None].expand(a, 1, c)
    agrees(aten.scatter.src, x, 1, index, new)
    agrees(aten.scatter.value, x, 1, index, 0.5)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "lt", "ge", "eq", "ne"])
@some
@given(a=sizes, b=sizes, wide=st.booleans())
def test_of_two_tensors_that_broadcast(name: str, a: int, b: int, wide: bool) -> None:
    agrees(getattr(aten, name).Tensor, rand(a, b), rand(b) if wide else rand(a, 1))


@some
@given(a=sizes, b=sizes, c=sizes, d=sizes)
def test_products(a: int, b: int, c: int, d: int) -> None:
    agrees(aten.mm.default, rand(a, b), rand(b, c))
    agrees(aten.bmm.default, rand(d, a, b), rand(d, b, c))
    agrees(aten.matmul.default, rand(d, a, b), rand(b, c))
    agrees(aten.linear.default, rand(d, a, b), rand(c, b), rand(c))
    agrees(aten.addmm.default, rand(c), rand(a, b), rand(b, c), beta=2.0, alpha=0.5)
    agrees(aten.einsum.default, "bik,bjk->bij", [rand(d, a, b), rand(d, c, b)])
    agrees(aten.einsum.default, "...ij,jk", [rand(d, a, b), rand(b, c)])


@some
@given(a=sizes, b=sizes, c=sizes, dim=st.integers(-3, 2))
def test_folds(a: int, b: int, c: int, dim: int) -> None:
    x = rand(a, b, c)
    agrees(aten.sum.dim_IntList, x, [dim])
    agrees(aten.mean.dim, x, [dim, (dim + 1) % 3 if (dim + 1) % 3 != dim % 3 else dim], True)
    agrees(aten.amax.default, x, [dim], True)
    agrees(aten.cumsum.default, x, dim)
    agrees(aten.softmax.int, x, dim)
    agrees(aten.log_softmax.int, x, dim)
    agrees(aten.logsumexp.default, x, [dim])
    if x.shape[dim] > 1:
        agrees(aten.var.correction, x, [dim], correction=1)


@some
@given(a=sizes, b=sizes, c=sizes)
def test_norms(a: int, b: int, c: int) -> None:
    agrees(aten.layer_norm.default, rand(a, b, c + 1), [c + 1], rand(c + 1), rand(c + 1))
    agrees(aten.rms_norm.default, rand(a, b, c + 1), [c + 1], rand(c + 1), 1e-3)
    agrees(aten.group_norm.default, rand(a, 4, b, c), 2, rand(4), rand(4), 1e-2)
    stats = rand(b), rand(b)
    agrees(
        aten.batch_norm.default, rand(a, b, c), rand(b), rand(b), *stats, False, 0.1, 1e-5, False
    )


@some
@given(heads=st.sampled_from([1, 2, 4]), s=sizes, t=sizes, causal=st.booleans())
def test_attention(heads: int, s: int, t: int, causal: bool) -> None:
    q, k, v = rand(2, 4, s, 3), rand(2, heads, t, 3), rand(2, heads, t, 3)
    agrees(
        aten.scaled_dot_product_attention.default, q, k, v, None, 0.0, causal and s == t,
        scale=0.7, enable_gqa=heads != 4,
    )  # fmt: skip
    agrees(aten.scaled_dot_product_attention.default, q, q, q, rand(s, s))
    mask = torch.ones(s, s, dtype=torch.bool).tril()
    agrees(aten.scaled_dot_product_attention.default, q, q, q, mask)


@some
@given(a=sizes, b=sizes, c=sizes, dim=st.integers(0, 2))
def test_views(a: int, b: int, c: int, dim: int) -> None:
    x = rand(a, b, c)
    agrees(aten.view.default, x, [a * b, c])
    agrees(aten.view.default, x, [c * b, -1])
    agrees(aten.reshape.default, x.transpose(0, 1), [b, -1])
    agrees(aten.view.default, rand(a * b, c), [a, b, 1, c])
    agrees(aten.permute.default, x, [2, 0, 1])
    agrees(aten.transpose.int, x, -1, dim)
    agrees(aten.slice.Tensor, x, dim, 1, -1)
    agrees(aten.slice.Tensor, x, dim, 0, 100, 2)
    agrees(aten.select.int, x, dim, -1)
    agrees(aten.unsqueeze.default, x, dim)
    agrees(aten.squeeze.dims, rand(1, a, 1), [0, 2])
    agrees(aten.expand.default, rand(a, 1, c), [2, a, b, -1])
    agrees(aten.split.Tensor, x, 2, dim)
    agrees(aten.unbind.int, x, dim)
    agrees(aten.flip.default, x, [dim])
    agrees(aten.roll.default, x, [1], [dim])
    agrees(aten.roll.default, x, [-1], [dim])
    agrees(aten.repeat.default, x, [2, 1, 1, 2])
    agrees(aten.repeat_interleave.self_int, x, 2, dim)
    agrees(aten.constant_pad_nd.default, x, [1, 2, 0, 1], 0.5)
    agrees(aten.cat.default, [x, x * 2, x], dim)
    agrees(aten.stack.default, [x, x * 2], dim)
    agrees(aten.tril.default, x, dim - 1)
    agrees(aten.triu.default, x, dim - 1)


@some
@given(a=sizes, b=sizes, n=sizes)
def test_gathers(a: int, b: int, n: int) -> None:
    ids = torch.randint(0, a, (2, n), generator=torch.Generator().manual_seed(n))
    agrees(aten.embedding.default, rand(a, b), ids)
    agrees(aten.index.Tensor, rand(a, b), [ids])
    agrees(aten.index.Tensor, rand(b, a), [None, ids])
    agrees(aten.index.Tensor, rand(a, a, b), [ids, ids - a])
    agrees(aten.index_select.default, rand(b, a), 1, ids[0])
    agrees(aten.gather.default, rand(a, n), 0, ids)
    agrees(aten.where.self, rand(n) > 0.6, rand(a, n), rand(a, 1))
    agrees(aten.masked_fill.Scalar, rand(a, n), rand(n) > 0.6, 3.0)
    agrees(aten.arange.start_step, 1, 1 + 2 * a, 2)
    agrees(aten.scatter_add.default, rand(a, n), 0, ids, rand(2, n))


@some
@given(
    h=st.integers(3, 5), k=st.integers(1, 3), s=st.integers(1, 2), p=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
)  # fmt: skip
def test_windows(h: int, k: int, s: int, p: int, groups: int) -> None:
    x = rand(1, 2, h, 4)
    agrees(
        aten.conv2d.default, x, rand(2, 2 // groups, k, 2), rand(2), [s, 1], [p, 1], [1, 1], groups
    )
    weight = rand(2, 2 // groups, k, 2)
    if k > p:
        agrees(
            aten.conv_transpose2d.input,
            x,
            weight,
            rand(2 // groups * groups),
            [s, 1],
            [p, 0],
            [0, 0],
            groups,
        )
    agrees(aten.avg_pool2d.default, x, [2, 2], [s, 1], [p, 0])
    agrees(aten.max_pool2d.default, x, [2, 2], [s, 1], [p, 0])
    agrees(aten.upsample_nearest2d.vec, x, None, [2.0, 2.0])
    agrees(aten.upsample_bilinear2d.vec, x, [h * 2, 3], False, None)


def test_a_wrong_meaning_is_noticed() -> None:
    with pytest.raises(AssertionError):
        torch.testing.assert_close(meaning(aten.sub.Tensor, rand(2), rand(2))[0] + 1, rand(2))


@pytest.mark.parametrize("reduction", [1, 2])
@some
@given(a=sizes, b=sizes, weighted=st.booleans(), images=st.booleans())
def test_cross_entropy(reduction: int, a: int, b: int, weighted: bool, images: bool) -> None:
    """Rows that do not count, weights of classes, targets of several dims."""
    shape = (a, b, 3) if images else (a, b)
    target = torch.arange(a * (3 if images else 1)).reshape((a, 3) if images else (a,)) % b
    target.view(-1)[1:2] = -100
    weight = rand(b) if weighted else None
    agrees(aten.cross_entropy_loss.default, rand(*shape), target, weight, reduction, -100, 0.0)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@some
@given(a=sizes, b=sizes, data=st.data())
def test_losses(reduction: int, a: int, b: int, data: Any) -> None:
    agrees(aten.mse_loss.default, rand(a, b), rand(b, a).T * 2, reduction)
    target = torch.tensor([-100, *(data.draw(st.integers(0, b - 1)) for _ in range(a))])
    for weight in (None, rand(b)):
        agrees(aten.nll_loss_nd.default, rand(a + 1, b), target, weight, reduction)
