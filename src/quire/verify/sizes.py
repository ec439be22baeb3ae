"""Sizes of a captured program as integer expressions."""

from __future__ import annotations

from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from quire.capture.program import Program
from quire.verify.decide import divmod_, maximum, minimum
from quire.verify.poly import ONE, ZERO, Poly, poly, variable
from quire.verify.value import NoMeaning


class Sizes:
    """Sympy sizes → polynomials; each length symbol is a variable with the program's range."""

    def __init__(self, program: Program) -> None:
        self.symbols: dict[str, Poly] = {}
        for s in program.symbols:
            upper = [] if s.hi is None else [s.hi]
            self.symbols[str(s.name)] = variable(str(s.name), [s.lo], upper)

    def __call__(self, size: Any) -> Any:
        if isinstance(size, int):
            return poly(size)
        if isinstance(size, sympy.Integer):
            return poly(int(size))
        if isinstance(size, sympy.Symbol):
            return self.symbols[str(size)]
        args = [self(a) for a in size.args]
        if isinstance(size, sympy.Add):
            return sum(args, ZERO)
        if isinstance(size, sympy.Mul):
            total = ONE
            for a in args:
                total = total * a
            return total
        if isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 0:
            total = ONE
            for _ in range(int(size.exp)):
                total = total * args[0]
            return total
        if isinstance(size, FloorDiv):
            return divmod_(*args)[0]
        if isinstance(size, Mod | PythonMod):
            return divmod_(*args)[1]
        if isinstance(size, sympy.Min):
            return minimum(*args)
        if isinstance(size, sympy.Max):
            return maximum(*args)
        raise NoMeaning(f"the size {size}")
