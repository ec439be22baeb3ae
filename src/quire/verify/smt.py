"""Formulas as SMT-LIB 2 text.

Every atom becomes an integer constant with what is known about it asserted; a product of unknowns
stays a product (logic QF_NIA, or QF_LIA where there is none). Reals read from tensors that stand
in a condition are opaque truth values.
"""

from __future__ import annotations

import re
from typing import Any

from quire.verify.decide import Obligation
from quire.verify.poly import Atom, Poly
from quire.verify.term import Term, int_of


def _whole(t: Term) -> bool:
    """Whether a term is an integer by what it is."""
    if t.op == "const":
        return t.args[0].denominator == 1
    return t.op == "int" or (t.op == "ite" and all(map(_whole, t.args[1:])))


class Text:
    """One script under construction: declarations and facts in order of first use."""

    def __init__(self) -> None:
        self.names: dict[Any, str] = {}
        self.declared: list[str] = []
        self.facts: list[str] = []
        self.linear = True

    def atom(self, x: Atom) -> str:
        if x in self.names:
            return self.names[x]
        word = re.sub(r"\W", "_", x.name) if x.kind == "var" else x.kind
        name = self.names[x] = f"{word}!{len(self.names)}"
        self.declared.append(f"(declare-const {name} Int)")
        for low in x.lower:
            self.facts.append(f"(assert (<= {self.poly(low)} {name}))")
        for high in x.upper:
            self.facts.append(f"(assert (<= {name} {self.poly(high)}))")
        if x.kind in ("min", "max"):
            a, b = map(self.poly, x.args)
            self.facts.append(f"(assert (or (= {name} {a}) (= {name} {b})))")
        elif x.kind == "div":
            p, n = map(self.poly, x.args)
            self.linear = self.linear and x.args[1].constant is not None
            self.facts.append(f"(assert (<= (* {n} {name}) {p}))")
            self.facts.append(f"(assert (< {p} (+ (* {n} {name}) {n})))")
        elif x.kind == "val":
            chosen = self._chosen(x.args[0])
            if chosen is not None:
                self.facts.append(f"(assert (= {name} {chosen}))")
        return name

    def _chosen(self, t: Term) -> str | None:
        """An integer that a condition chooses between integers."""
        if t.op == "ind":
            return f"(ite {self.condition(t.args[0])} 1 0)"
        if t.op != "ite" or not all(map(_whole, t.args[1:])):
            return None
        c, a, b = t.args
        return f"(ite {self.condition(c)} {self.poly(int_of(a))} {self.poly(int_of(b))})"

    def poly(self, p: Poly) -> str:
        if not p.terms:
            return "0"
        words = []
        for mono, c in p.terms:
            self.linear = self.linear and len(mono) < 2
            factors = [self.atom(x) for x in mono]
            if c != 1 or not factors:
                factors.insert(0, str(c) if c >= 0 else f"(- {-c})")
            words.append(factors[0] if len(factors) == 1 else f"(* {' '.join(factors)})")
        return words[0] if len(words) == 1 else f"(+ {' '.join(words)})"

    def condition(self, c: Term) -> str:
        if c.op in ("true", "false"):
            return c.op
        if c.op == "ge":
            return f"(>= {self.poly(c.args[0])} 0)"
        if c.op == "eq":
            return f"(= {self.poly(c.args[0])} 0)"
        if c.op == "not":
            return f"(not {self.condition(c.args[0])})"
        if c.op in ("and", "or"):
            return f"({c.op} {' '.join(map(self.condition, c.args[0]))})"
        if c not in self.names:
            self.names[c] = f"c!{len(self.names)}"
            self.declared.append(f"(declare-const {self.names[c]} Bool)")
        return self.names[c]

    def finish(self, negated: str) -> str:
        logic = "QF_LIA" if self.linear else "QF_NIA"
        rows = [f"(set-logic {logic})", *self.declared, *self.facts, f"(assert {negated})"]
        return "\n".join([*rows, "(check-sat)"]) + "\n"


def of_obligation(o: Obligation) -> str:
    """Unsatisfiable exactly if the obligation holds."""
    text = Text()
    goal = text.poly(o.goal)
    for relation, premise in o.premises:
        sign = ">=" if relation == ">=" else "="
        text.facts.append(f"(assert ({sign} {text.poly(premise)} 0))")
    text.facts += [f"(assert (>= {text.poly(product)} 0))" for product in o.products]
    sign = ">=" if o.relation == ">=" else "="
    return text.finish(f"(not ({sign} {goal} 0))")


def of_conditions(premises: list[Term], a: Term, b: Term) -> str:
    """Unsatisfiable exactly if `a` and `b` agree wherever the premises hold."""
    text = Text()
    left, right = text.condition(a), text.condition(b)
    for premise in premises:
        text.facts.append(f"(assert {text.condition(premise)})")
    return text.finish(f"(not (= {left} {right}))")
