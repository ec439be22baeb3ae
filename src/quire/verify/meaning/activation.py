"""Activations in the functions they are defined by."""

from __future__ import annotations

import math
from typing import Any

from quire.verify import term as t
from quire.verify.meaning.pointwise import pointwise
from quire.verify.meaning.table import means
from quire.verify.value import Value


def _sigmoid(x: t.Term) -> t.Term:
    return t.fn("sigmoid", x)


@means("silu")
def silu(self: Value) -> Value:
    """x · sigmoid(x)"""
    return pointwise(self.dtype, lambda x: t.mul((x, 1), (_sigmoid(x), 1)), self)


@means("gelu")
def gelu(self: Value, approximate: str = "none") -> Value:
    """x·(1 + erf(x/√2))/2, or x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2"""

    def f(x: Any) -> Any:
        if approximate == "tanh":
            inner = t.add((1, x), (1, t.mul((t.const(0.044715), 1), (x, 3))))
            bent = t.fn("tanh", t.mul((t.const(math.sqrt(2 / math.pi)), 1), (inner, 1)))
        else:
            bent = t.fn("erf", t.mul((t.const(math.sqrt(0.5)), 1), (x, 1)))
        return t.mul((t.const(0.5), 1), (x, 1), (t.add((1, t.ONE_), (1, bent)), 1))

    return pointwise(self.dtype, f, self)


def _below(x: t.Term, limit: float) -> t.Term:
    return t.compare("lt", x, t.const(limit))


@means("leaky_relu")
def leaky_relu(self: Value, negative_slope: float = 0.01) -> Value:
    def f(x: t.Term) -> Any:
        return t.ite(_below(x, 0.0), t.mul((t.const(float(negative_slope)), 1), (x, 1)), x)

    return pointwise(self.dtype, f, self)


@means("elu")
def elu(self: Value, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
    """scale · (x where x > 0, else alpha·(exp(input_scale·x) − 1))"""

    def f(x: t.Term) -> Any:
        power = t.exp(t.mul((t.const(float(input_scale)), 1), (x, 1)))
        low = t.mul((t.const(float(alpha)), 1), (t.add((1, power), (-1, t.ONE_)), 1))
        found = t.ite(t.compare("lt", t.ZERO_, x), x, low)
        return t.mul((t.const(float(scale)), 1), (found, 1))

    return pointwise(self.dtype, f, self)


@means("softplus")
def softplus(self: Value, beta: Any = 1, threshold: Any = 20) -> Value:
    """log(1 + exp(beta·x))/beta; x itself where beta·x exceeds the threshold"""

    def f(x: t.Term) -> Any:
        scaled = t.mul((t.const(float(beta)), 1), (x, 1))
        soft = t.fn("log", t.add((1, t.ONE_), (1, t.exp(scaled))))
        smooth = t.mul((soft, 1), (t.const(float(beta)), -1))
        return t.ite(t.compare("lt", t.const(float(threshold)), scaled), x, smooth)

    return pointwise(self.dtype, f, self)
