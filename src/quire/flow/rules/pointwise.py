"""Ops whose output at an index depends on the operands at the same (broadcast) index only."""

from __future__ import annotations

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Span, span
from quire.flow.rules.common import aten, broadcast, make_axis, make_flow, nothing, numel

UNARY = aten("""
    abs acos acosh alias angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max
    clamp_min clone conj_physical contiguous cos cosh deg2rad detach digamma elu erf erfc erfinv
    exp exp2 expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh i0 isfinite isinf
    isnan isneginf isposinf leaky_relu lgamma lift_fresh_copy log log10 log1p log2 log_sigmoid
    logical_not logit mish nan_to_num neg positive rad2deg reciprocal relu relu6 round
    round.decimals rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink
    special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_ndtri
    sqrt square tan tanh threshold trunc _to_copy to.dtype to.device to.dtype_layout
    type_as to.other
""")

BINARY = aten("""
    add.Scalar add.Tensor sub.Scalar sub.Tensor rsub.Scalar rsub.Tensor mul.Scalar mul.Tensor
    div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode true_divide.Tensor floor_divide
    floor_divide.Scalar remainder.Scalar remainder.Scalar_Tensor remainder.Tensor fmod.Scalar
    fmod.Tensor pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor float_power.Scalar
    float_power.Tensor_Scalar float_power.Tensor_Tensor atan2 copysign.Scalar copysign.Tensor
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor ge.Scalar ge.Tensor gt.Scalar gt.Tensor le.Scalar
    le.Tensor lt.Scalar lt.Tensor fmax fmin maximum minimum max.other min.other clamp.Tensor
    clamp_max.Tensor clamp_min.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor
    bitwise_and.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_or.Tensor
    bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_xor.Tensor
    bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
    bitwise_right_shift.Tensor_Scalar __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor
    __xor__.Scalar __xor__.Tensor __lshift__.Scalar __lshift__.Tensor __rshift__.Scalar
    __rshift__.Tensor logical_and logical_or logical_xor gcd lcm heaviside hypot ldexp.Tensor
    logaddexp logaddexp2 nextafter xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor
    gelu_backward silu_backward sigmoid_backward tanh_backward threshold_backward
    hardswish_backward hardtanh_backward leaky_relu_backward elu_backward softplus_backward
    native_dropout_backward copy
""")

TERNARY = aten("""
    addcdiv addcmul lerp.Scalar lerp.Tensor masked_fill.Scalar masked_fill.Tensor
    where.self where.Scalar where.ScalarOther where.ScalarSelf
""")

# Each element of their output is one operation; the others of the tuples above are as cheap, but
# for these a library call dominates. Only the roofline reads the number, and it is bound by bytes.
COSTLY = frozenset(aten("exp expm1 erf gelu tanh sigmoid silu sin cos log log1p softplus mish"))

# Reads no element of these: they only give a dtype and device.
UNREAD = frozenset(aten("type_as to.other"))


def pointwise_axes(op: Op, operands: tuple[Operand, ...]) -> tuple[list[Axis], dict[int, str]]:
    """One axis for each dim of the output, and the dims that have none with the reason."""
    axes: list[Axis] = []
    reasons: dict[int, str] = {}
    shape: tuple[Size, ...] = op.out.shape
    for dim, size in enumerate(shape):
        reads: dict[int, Span] = {}
        for operand in operands:
            found = broadcast(operand, shape, dim)
            if isinstance(found, Span):
                reads[operand.index] = found
            elif found is not None:
                reasons[dim] = found
        if dim not in reasons:
            writes = {k: span(dim) for k in range(len(op.outputs))}
            axes.append(make_axis(op, size, reads, writes))
    return axes, reasons


@rule(*UNARY, *BINARY, *TERNARY)
def pointwise(op: Op) -> Flow:
    operands = op.operands[:1] if op.target in UNREAD else op.operands
    axes, reasons = pointwise_axes(op, operands)
    flops = numel(op) * (8 if op.target in COSTLY else 1)
    return make_flow(op, axes, reasons=reasons, flops=flops, pointwise=not reasons)


@rule(*aten("prelu"))
def prelu(op: Op) -> Flow:
    """The slope belongs to dim 1, not to the last dim as broadcasting would have it."""
    one = op.operands[1].shape in ((), (1,))
    axes = []
    for dim, size in enumerate(op.out.shape):
        reads = {0: span(dim)} | ({1: span(0)} if dim == 1 and not one else {})
        axes.append(make_axis(op, size, reads, {0: span(dim)}))
    return make_flow(op, axes, flops=numel(op))


@rule(*aten("dropout native_dropout feature_dropout alpha_dropout"))
def dropout(op: Op) -> Flow:
    if op["train"] is not False and op["p"] != 0:
        return nothing(op, "it draws random numbers, whose order a split would change")
    axes, reasons = pointwise_axes(op, op.operands)
    return make_flow(op, axes, reasons=reasons, flops=0)


@rule(*aten("_assert_tensor_metadata"))
def assertion(op: Op) -> Flow:
    """Holds for each part if it holds for the whole, unless it names sizes or strides."""
    if op.get("size") is not None or op.get("stride") is not None:
        return nothing(op, "it asserts sizes or strides of the whole tensor")
    source = op.operands[0]
    return make_flow(op, [make_axis(op, n, {0: span(d)}, {}) for d, n in enumerate(source.shape)])


@rule(*aten("bernoulli bernoulli.p rand randn randint randint.low randperm rand_like randn_like"))
def random(op: Op) -> Flow:
    return nothing(op, "it draws random numbers, whose order a split would change")
