"""Numbers of a finite field, carried in tensors of torch.float64.

An element is a pair: a residue mod P and one mod Q, with P = 2Q + 1 both prime. Sums and products
act on both; exp(x) is G to the power of x's residue mod Q, for G of order Q mod P, so that
exp(a + b) = exp(a)·exp(b) holds. What exp gives has no residue mod Q of its own; where one is
asked for, it is a keyed hash of the residue mod P. Other functions are keyed hashes as well. The
pair is packed as `p + P·q`, below 2^53; −inf stands for itself. The idea of the pair is Mirage's
(Wu et al., OSDI 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

P = 67108187
Q = 33554093
G = 4
UNKNOWN = Q
LIMB = 1 << 13
MOST_TERMS = 1 << 14
"""A product sums at most so many terms: limb products then stay below 2^53."""


def unpack(x: Tensor) -> tuple[Tensor, Tensor]:
    """The residues of each element; those of −inf are 0."""
    x = torch.where(torch.isinf(x), 0.0, x)
    q = torch.floor(x / P)
    return x - q * P, q


def pack(p: Tensor, q: Tensor, unknown: Tensor | bool = False) -> Tensor:
    return p + P * torch.where(torch.as_tensor(unknown), float(UNKNOWN), q)


def encode(value: Any) -> float:
    """A number of the program: a fraction mod P and mod Q."""
    if isinstance(value, float) and value <= torch.finfo(torch.float16).min:
        return float("-inf")
    exact = meant(value)
    p, q = (exact.numerator * pow(exact.denominator, -1, m) % m for m in (P, Q))
    return float(p + P * q)


def meant(value: Any) -> Fraction:
    """The fraction a number of the program stands for (axiom `constants`): the plainest within
    2^−44 of it, else its first 44 bits."""
    exact = Fraction(value)
    plain = exact.limit_denominator(1 << 20)
    if abs(plain - exact) <= abs(exact) / (1 << 44):
        return plain
    mantissa, exponent = math.frexp(value)
    return Fraction(round(mantissa * (1 << 44))) * Fraction(2) ** (exponent - 44)


def encoded(x: Tensor) -> Tensor:
    """A tensor of plain numbers as field elements."""
    values, places = torch.unique(x.double(), return_inverse=True)
    return torch.tensor([encode(v) for v in values.tolist()], dtype=torch.float64)[places]


def times(a: Tensor, b: Tensor, m: int, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A bilinear `product` of residues mod m, exact: `a` is taken in two limbs."""
    high = torch.floor(a / LIMB)
    upper = torch.remainder(product(high, b), m)
    return torch.remainder(upper * LIMB + torch.remainder(product(a - high * LIMB, b), m), m)


def bilinear(a: Tensor, b: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A product of elements: unknown where a factor is that is not surely taken zero times."""
    (pa, qa), (pb, qb) = unpack(a), unpack(b)
    ua, ub = qa == UNKNOWN, qb == UNKNOWN
    p = times(pa, pb, P, product)
    q = times(torch.where(ua, 0.0, qa), torch.where(ub, 0.0, qb), Q, product)
    if not (ua.any() or ub.any()):
        return pack(p, q)
    some = product(ua.double(), torch.ones_like(b)) + product(torch.ones_like(a), ub.double())
    return pack(p, q, some > 0)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    x, y = torch.broadcast_tensors(a, b)
    return bilinear(x, y, torch.mul)


def total(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    p, q = unpack(x)
    unknown = q == UNKNOWN
    sums = [torch.remainder(y.sum(dims, keepdim), m)
            for y, m in ((p, P), (torch.where(unknown, 0.0, q), Q))]  # fmt: skip
    return pack(sums[0], sums[1], unknown.double().sum(dims, keepdim) > 0)


def add(a: Tensor, b: Tensor) -> Tensor:
    (pa, qa), (pb, qb) = unpack(a), unpack(b)
    unknown = (qa == UNKNOWN) | (qb == UNKNOWN)
    made = pack(torch.remainder(pa + pb, P), torch.remainder(qa + qb, Q), unknown)
    return torch.where(torch.isinf(a) | torch.isinf(b), float("-inf"), made)


def negative(x: Tensor) -> Tensor:
    return multiply(x, torch.full((), encode(-1), dtype=torch.float64))


def power(x: Tensor, exponent: int, m: int) -> Tensor:
    """Residues to a fixed power mod m."""
    out = torch.ones_like(x)
    while exponent:
        if exponent & 1:
            out = times(out, x, m, torch.mul)
        x = times(x, x, m, torch.mul)
        exponent >>= 1
    return out


def inverse(x: Tensor) -> Tensor:
    p, q = unpack(x)
    unknown = q == UNKNOWN
    return pack(power(p, P - 2, P), power(torch.where(unknown, 0.0, q), Q - 2, Q), unknown)


def settled(x: Tensor) -> Tensor:
    """`x` with a residue mod Q everywhere."""
    p, q = unpack(x)
    made = pack(p, torch.where(q == UNKNOWN, _hash(p, "settled", Q), q))
    return torch.where(torch.isinf(x), x, made)


def exp(x: Tensor) -> Tensor:
    _, q = unpack(settled(x))
    left, out, base = q, torch.ones_like(q), G
    for _ in range(Q.bit_length()):
        odd = torch.remainder(left, 2.0)
        factor = torch.where(odd == 1, float(base) * torch.ones_like(q), 1.0)
        out = times(out, factor, P, torch.mul)
        left, base = (left - odd) / 2, base * base % P
    made = pack(out, torch.zeros_like(out), True)
    return torch.where(torch.isinf(x), 0.0, made)


def function(name: str, *xs: Tensor) -> Tensor:
    """A function known by name only: a keyed hash of the residues mod P."""
    key = torch.zeros_like(xs[0])
    for k, x in enumerate(xs):
        key = torch.remainder(key + _hash(unpack(x)[0], f"{name}{k}", P), P)
    return pack(_hash(key, name, P), _hash(key, f"{name}'", Q))


def _hash(p: Tensor, salt: str, m: int) -> Tensor:
    """Mixed as in SplitMix64 (Steele et al. 2014), salted by a name."""
    seed = sum(ord(c) * 0x9E3779B1 ** (k + 1) for k, c in enumerate(salt)) % (1 << 62)
    x = p.long() * 0x1B873593 + seed
    for shift, factor in ((30, 0x3C6EF372FE94F82B), (27, 0x14D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return torch.remainder((x ^ (x >> 31)) & ((1 << 62) - 1), m).double()
