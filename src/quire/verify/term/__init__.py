"""Scalar terms over the reals in one normal form; equal terms are one object.

    add    Σ cᵢ·tᵢ                    mul    Π tᵢ^kᵢ
    sum    Σ_{0≤j<n} body(j)          max    max_{0≤j<n} body(j)       (min likewise)
    read   an element of a tensor     fn     a function known by name only
    ind    1 where a condition holds, else 0

The laws applied on the way are those of `laws.py`, each by name.
"""

from quire.verify.term.arithmetic import add, exp, fn, ind, ite, mul, positive
from quire.verify.term.binder import bind, extreme, row
from quire.verify.term.condition import and_, compare, eq, ge, not_, or_
from quire.verify.term.core import (
    BINDERS,
    CONSTANT_BITS,
    FALSE,
    NAN,
    NINF,
    ONE_,
    PINF,
    TRUE,
    ZERO_,
    Term,
    addends,
    const,
    int_of,
    make,
    named,
    number,
    of_int,
    read,
    show,
    substitute,
)  # fmt: skip

__all__ = [
    "BINDERS", "CONSTANT_BITS", "FALSE", "NAN", "NINF", "ONE_", "PINF", "TRUE", "ZERO_", "Term",
    "add", "addends", "and_", "bind", "compare", "const", "eq", "exp", "extreme", "fn", "ge",
    "ind", "int_of", "ite", "make", "mul", "named", "not_", "number", "of_int", "or_", "positive",
    "read", "row", "show", "substitute",
]  # fmt: skip
