"""Samples for products, reductions, norms, attention, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from rule_samples import Gen, samples

Calls = Iterator[tuple[Any, ...]]


@samples("linear")
def linear(g: Gen) -> Calls:
    lead, k, n = g.shape(g.n(0, 1, 2, 3)), g.n(), g.n()
    yield g.t(*lead, k), g.t(n, k), g.maybe(g.t(n))


@samples("matmul")
def matmul(g: Gen) -> Calls:
    m, k, n, batch = g.n(), g.n(), g.n(), g.shape(g.n(0, 1, 2))
    left, right = g.n(1, 2, 3), g.n(1, 2, 3)
    a = g.t(k) if left == 1 else g.t(*(g.thin(batch) if left == 3 else ()), m, k)
    b = g.t(k) if right == 1 else g.t(*(batch if right == 3 else ()), k, n)
    yield a, b


@samples("mm")
def mm(g: Gen) -> Calls:
    m, k, n = g.shape(3)
    yield g.t(m, k), g.t(k, n)


@samples("bmm")
def bmm(g: Gen) -> Calls:
    b, m, k, n = g.shape(4)
    yield g.t(b, m, k), g.t(b, k, n)


@samples("mv")
def mv(g: Gen) -> Calls:
    m, k = g.shape(2)
    yield g.t(m, k), g.t(k)


@samples("dot vdot")
def dot(g: Gen) -> Calls:
    (k,) = g.shape(1)
    yield g.t(k), g.t(k)


@samples("outer")
def outer(g: Gen) -> Calls:
    m, n = g.shape(2)
    yield g.t(m), g.t(n)


@samples("addmm")
def addmm(g: Gen) -> Calls:
    m, k, n = g.shape(3)
    yield g.t(*g.thin((m, n))), g.t(m, k), g.t(k, n), {"beta": g.n(1, 1, 2), "alpha": g.n(1, 3)}


@samples("baddbmm")
def baddbmm(g: Gen) -> Calls:
    b, m, k, n = g.shape(4)
    yield g.t(*g.thin((b, m, n))), g.t(b, m, k), g.t(b, k, n), {"beta": g.n(0, 1, 1)}


@samples("addbmm")
def addbmm(g: Gen) -> Calls:
    b, m, k, n = (g.n() for _ in range(4))
    yield g.t(*g.thin((m, n))), g.t(b, m, k), g.t(b, k, n)


@samples("addmv")
def addmv(g: Gen) -> Calls:
    m, k = (g.n() for _ in range(2))
    yield g.t(m), g.t(m, k), g.t(k)


@samples("einsum")
def einsum(g: Gen) -> Calls:
    sizes = dict(zip("abcdefghijklmnopqrstuvwxyz", [g.n() for _ in range(26)], strict=True))
    batch = (g.n(), g.n())
    for equation in (
        "ij,jk->ik",
        "bid,bjd->bij",
        "...qc,...kc->...qk",
        "...hqk,...hkc->...qhc",
        "nhwpqc->nchpwq",
        "ij,jk",
        "bhij,bhjd->bhid",
        "ij->j",
        "ii->i",
        "i,j->ij",
        "i...,i->...",
    ):
        left = equation.split("->")[0]
        terms = [
            g.t(*(s for c in term.replace("...", ".") for s in (batch if c == "." else [sizes[c]])))
            for term in left.split(",")
        ]
        yield equation, terms


@samples("bilinear")
def bilinear(g: Gen) -> Calls:
    lead, i, j, o = g.shape(g.n(1, 2)), g.n(), g.n(), g.n()
    yield g.t(*lead, i), g.t(*lead, j), g.t(o, i, j), g.maybe(g.t(o))


@samples("cdist _cdist_forward")
def cdist(g: Gen) -> Calls:
    b, m, n, k = (g.n() for _ in range(4))
    yield g.t(b, m, k), g.t(b, n, k), 2.0, None


@samples("_grouped_mm")
def grouped_mm(g: Gen) -> Calls:
    rows, k, n = 12, g.n(8, 16), g.n(8, 24)
    offsets = torch.tensor([3, 7, 12], dtype=torch.int32)
    yield g.t(rows, k).bfloat16(), g.t(3, k, n).bfloat16(), offsets


@samples("sum any all amax amin max min mean prod nansum count_nonzero var std norm.Scalar")
def reduce_all(g: Gen) -> Calls:
    yield (whole(g),)


def whole(g: Gen) -> torch.Tensor:
    return g.t(*(g.n() for _ in range(g.n(1, 2, 3))))


@samples("sum.dim_IntList mean.dim var.dim std.dim any.dims all.dims var_mean.dim")
def reduce_dims(g: Gen) -> Calls:
    x = whole(g)
    yield x, g.dims(x.ndim)
    yield x, [g.dim(x.ndim)], {"keepdim": True}


@samples("nll_loss_forward nll_loss nll_loss_nd cross_entropy_loss")
def losses(g: Gen) -> Calls:
    rows, classes = g.n(), g.n(3, 5, 7)
    for reduction in (0, 1, 2):
        yield g.t(rows, classes), g.ints(classes, rows), g.maybe(g.t(classes).abs()), reduction, 1


@samples("nll_loss2d_forward")
def losses2d(g: Gen) -> Calls:
    yield g.t(2, 5, 3, 4), g.ints(5, 2, 3, 4), None, 0, -100


@samples("mse_loss l1_loss smooth_l1_loss huber_loss")
def pair_losses(g: Gen) -> Calls:
    x = whole(g)
    for reduction in (0, 1, 2):
        yield x, g.t(*x.shape), reduction


@samples("binary_cross_entropy")
def entropy_of_odds(g: Gen) -> Calls:
    x = whole(g)
    for reduction in (0, 1, 2):
        yield x.sigmoid(), g.t(*x.shape).sigmoid(), g.maybe(g.t(*x.shape).abs()), reduction


@samples("binary_cross_entropy_with_logits")
def entropy_of_logits(g: Gen) -> Calls:
    x = whole(g)
    for reduction in (0, 1, 2):
        weights = g.maybe(g.t(*x.shape).abs()), g.maybe(g.t(x.shape[-1]).abs())
        yield x, g.t(*x.shape).sigmoid(), *weights, reduction


@samples("soft_margin_loss")
def soft_margin(g: Gen) -> Calls:
    x = whole(g)
    for reduction in (0, 1, 2):
        yield x, g.t(*x.shape).sign(), reduction


@samples("prod.dim_int any.dim all.dim argmax argmin max.dim min.dim median.dim nanmedian.dim mode")
def reduce_dim(g: Gen) -> Calls:
    x = whole(g)
    yield x, g.dim(x.ndim), g.flag()


@samples("logsumexp")
def logsumexp(g: Gen) -> Calls:
    x = whole(g)
    yield x, g.dims(x.ndim), g.flag()


@samples("norm.ScalarOpt_dim")
def norm(g: Gen) -> Calls:
    x = whole(g)
    yield x, 2, g.dims(x.ndim), g.flag()


@samples("norm.ScalarOpt_dim_dtype")
def norm_dtype(g: Gen) -> Calls:
    x = whole(g)
    yield x, 2, g.dims(x.ndim), g.flag(), {"dtype": torch.float64}


@samples("kthvalue")
def kthvalue(g: Gen) -> Calls:
    x = whole(g)
    yield x, 1, g.dim(x.ndim), g.flag()


@samples("count_nonzero.dim_IntList")
def count_nonzero(g: Gen) -> Calls:
    x = whole(g)
    yield (x > 0), g.dims(x.ndim)


@samples("var.correction std.correction var_mean.correction std_mean.correction")
def variance(g: Gen) -> Calls:
    x = whole(g)
    yield x, g.dims(x.ndim), {"correction": 0, "keepdim": g.flag()}
    yield x, None, {"correction": 0}


@samples("aminmax")
def aminmax(g: Gen) -> Calls:
    x = whole(g)
    yield x, {"dim": g.dim(x.ndim), "keepdim": g.flag()}


@samples("quantile")
def quantile(g: Gen) -> Calls:
    x = whole(g)
    yield x, torch.tensor(0.3, dtype=torch.float64), g.dim(x.ndim), g.flag()


@samples("linalg_vector_norm")
def vector_norm(g: Gen) -> Calls:
    x = whole(g)
    for order in (0, 1, 2, 3.5, float("inf"), float("-inf")):
        yield x, order, g.maybe(g.dims(x.ndim)), g.flag()


@samples("histc")
def histc(g: Gen) -> Calls:
    yield whole(g), 4, -1, 1
    yield whole(g), 4


@samples("bincount")
def bincount(g: Gen) -> Calls:
    yield g.ints(5, g.n()), None, 7


@samples("softmax.int log_softmax.int _safe_softmax")
def softmax(g: Gen) -> Calls:
    x = g.t(*g.shape(g.n(0, 1, 2, 3, 4)))
    yield x, g.dim(x.ndim)
    for masked in (-torch.inf, torch.finfo(torch.float64).min):
        x = g.t(*g.shape(2))
        yield x.masked_fill(g.mask(*x.shape), masked), -1


@samples("_softmax _log_softmax")
def private_softmax(g: Gen) -> Calls:
    x = g.t(*g.shape(g.n(1, 2, 3, 4)))
    yield x, g.dim(x.ndim), False


@samples("_softmax_backward_data _log_softmax_backward_data")
def softmax_backward(g: Gen) -> Calls:
    x = whole(g)
    yield g.t(*x.shape), x.softmax(0), g.dim(x.ndim), torch.float64


@samples("layer_norm native_layer_norm")
def layer_norm(g: Gen) -> Calls:
    lead, size = g.shape(g.n(0, 1, 2)), [g.n() for _ in range(g.n(1, 2))]
    yield g.t(*lead, *size), size, g.maybe(g.t(*size)), g.maybe(g.t(*size)), 1e-5


@samples("rms_norm _fused_rms_norm")
def rms_norm(g: Gen) -> Calls:
    lead, size = g.shape(g.n(1, 2)), [g.n()]
    yield g.t(*lead, *size), size, g.maybe(g.t(*size)), 1e-5


@samples("group_norm")
def group_norm(g: Gen) -> Calls:
    groups, width = g.n(1, 2, 3, 5), g.n(2, 3)
    c = groups * width
    yield g.t(g.n(), c, g.n(), g.n()), groups, g.maybe(g.t(c)), g.maybe(g.t(c))


@samples("native_group_norm")
def native_group_norm(g: Gen) -> Calls:
    groups, width, n, h, w = g.n(1, 2, 3, 5), g.n(2, 3), g.n(), g.n(), g.n()
    c = groups * width
    yield g.t(n, c, h, w), g.maybe(g.t(c)), g.maybe(g.t(c)), n, c, h * w, groups, 1e-5


@samples("batch_norm instance_norm")
def batch_norm(g: Gen) -> Calls:
    x = g.t(g.n(2, 3, 5), g.n(), g.n(2, 3), g.n())
    c = x.shape[1]
    yield (
        x,
        g.maybe(g.t(c)),
        g.maybe(g.t(c)),
        g.t(c),
        g.t(c).abs(),
        g.flag(),
        0.1,
        1e-5,
        False,
    )


@samples("_native_batch_norm_legit_no_training")
def batch_norm_eval(g: Gen) -> Calls:
    x = g.t(g.n(), g.n(), g.n(), g.n())
    c = x.shape[1]
    yield x, g.maybe(g.t(c)), g.maybe(g.t(c)), g.t(c), g.t(c).abs(), 0.1, 1e-5


@samples("_weight_norm")
def weight_norm(g: Gen) -> Calls:
    v = g.t(g.n(), g.n(), g.n())
    dim = g.n(0, 2)
    shape = [s if d == dim else 1 for d, s in enumerate(v.shape)]
    yield v, g.t(*shape), dim


@samples("scaled_dot_product_attention")
def attention(g: Gen) -> Calls:
    b, h, rows, keys, e, ev = g.n(), g.n(1, 2, 3), g.n(), g.n(), g.n(2, 4, 5), g.n()
    each = g.n(1, 2, 3)
    q, k, v = g.t(b, h * each, rows, e), g.t(b, h, keys, e), g.t(b, h, keys, ev)
    shapes = ((b, h * each, rows, keys), (rows, keys), (b, 1, rows, keys), (1, 1, 1, keys))
    mask = g.maybe(g.t(*g.rng.choice(shapes)))
    causal = mask is None and g.flag()
    yield q, k, v, mask, 0.0, causal, {"enable_gqa": each > 1}
    yield q[:, 0], k[:, 0], v[:, 0], None, 0.0, causal, {"scale": 0.3}
    yield q, k[:, :1], v[:, :1], None, 0.0, False, {"enable_gqa": True}
