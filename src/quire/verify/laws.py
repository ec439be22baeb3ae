"""The laws that the normal form of terms rests on, as objects: they render the documents and give
the obligations that the solvers discharge. An axiom has no obligation: it is trusted by name.

A fold F of f over [0, n) is given by F(0) = unit and F(n + 1) = F(n) ∘ f(n); an induction has a
base and a step, both free of quantifiers.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Law:
    """`statement` for people. `obligations` are SMT-LIB texts, each unsatisfiable if it holds."""

    name: str
    statement: str
    obligations: tuple[str, ...] = ()

    @property
    def axiom(self) -> bool:
        return not self.obligations


def real(names: str, facts: list[str], goal: str) -> str:
    """`goal` from `facts` over reals: exactly the names given are unknown."""
    declared = [f"(declare-const {n} Real)" for n in names.split()]
    logic = "QF_NRA" if "(* " in " ".join([*facts, goal]) else "QF_LRA"
    rows = [f"(set-logic {logic})", *declared, *(f"(assert {f})" for f in facts)]
    return "\n".join([*rows, f"(assert (not {goal}))", "(check-sat)"]) + "\n"


def integer(names: str, facts: list[str], goal: str) -> str:
    """`goal` from `facts` over the integers."""
    return real(names, facts, goal).replace(" Real)", " Int)").replace("RA)", "IA)")


def larger(a: str, b: str) -> str:
    return f"(ite (>= {a} {b}) {a} {b})"


LAWS = (
    Law(
        "sum-split",
        "Σ_{j<n} f(j) + Σ_{j<m} f(n+j) = Σ_{j<n+m} f(j), by induction on m",
        (
            real("sn tm", ["(= tm 0.0)"], "(= (+ sn tm) sn)"),
            real(
                "sn snm tm f s1 t1",
                ["(= snm (+ sn tm))", "(= s1 (+ snm f))", "(= t1 (+ tm f))"],
                "(= s1 (+ sn t1))",
            ),
        ),
    ),
    Law(
        "sum-digits",
        "Σ_{j<n·m} f(j) = Σ_{h<n} Σ_{l<m} f(m·h + l), by induction on n from sum-split",
        (
            real("s t", ["(= s 0.0)", "(= t 0.0)"], "(= s t)"),
            real("s t r s1 t1", ["(= s t)", "(= s1 (+ s r))", "(= t1 (+ t r))"], "(= s1 t1)"),
        ),
    ),
    Law(
        "max-split",
        "max(max_{j<n} f(j), max_{j<m} f(n+j)) = max_{j<n+m} f(j) for n, m ≥ 1, by induction on m",
        (
            real("a f", [], f"(= {larger('a', 'f')} {larger('a', 'f')})"),
            real(
                "a b t f b1 t1",
                [
                    f"(= b {larger('a', 't')})",
                    f"(= b1 {larger('b', 'f')})",
                    f"(= t1 {larger('t', 'f')})",
                ],
                f"(= b1 {larger('a', 't1')})",
            ),
        ),
    ),
    Law(
        "sum-linear",
        "Σ c·f(j) = c·Σ f(j) for c free of j, by induction on the range",
        (
            real("c", [], "(= (* c 0.0) 0.0)"),
            real(
                "c s t f s1 t1",
                ["(= s (* c t))", "(= s1 (+ s (* c f)))", "(= t1 (+ t f))"],
                "(= s1 (* c t1))",
            ),
        ),
    ),
    Law(
        "guard-range",
        "Σ_{j<n} [j<k]·f(j) = Σ_{j<k} f(j) for 0 ≤ k ≤ n, by induction on n from k",
        (
            real("s", [], "(= s s)"),
            real("s t f s1", ["(= s t)", "(= s1 (+ s (* 0.0 f)))"], "(= s1 t)"),
        ),
    ),
    Law(
        "softmax-shift",
        "exp(xᵢ−m)/Σ exp(xⱼ−m) = exp(xᵢ)/Σ exp(xⱼ) for every m: the running maximum of an "
        "online softmax cancels",
        (
            real(
                "e s c",
                ["(> s 0.0)", "(> c 0.0)"],
                "(= (* (* e c) s) (* e (* s c)))",
            ),
        ),
    ),
    Law(
        "online-step",
        "l = c·Σ_{j<a}, l' = l·(c'/c) + c'·Σ_{a≤j<b}  ⇒  l' = c'·Σ_{j<b}, with c = exp(−m) > 0",
        (
            real(
                "c d r l s t l1",
                ["(> c 0.0)", "(= (* r c) d)", "(= l (* c s))", "(= l1 (+ (* l r) (* d t)))"],
                "(= l1 (* d (+ s t)))",
            ),
        ),
    ),
    Law(
        "mean-split",
        "mean over n+m = (n·mean over n + m·mean over m)/(n+m): from sum-split",
        (
            real(
                "s t n m a b",
                ["(> n 0.0)", "(> m 0.0)", "(= (* a n) s)", "(= (* b m) t)"],
                "(= (+ (* n a) (* m b)) (+ s t))",
            ),
        ),
    ),
    Law(
        "product",
        "a·b ≥ 0 for a, b ≥ 0: a factor times the distance of a number from its bound",
        (real("a b", ["(>= a 0.0)", "(>= b 0.0)"], "(>= (* a b) 0.0)"),),
    ),
    Law(
        "div-shift",
        "⌊(q·n + r)/n⌋ = q + ⌊r/n⌋ for n ≥ 1: with d and e the two quotients, (d − q − e)·n lies "
        "strictly between −n and n, which holds of no multiple but 0",
        (
            integer(
                "n r dn qn en",
                ["(<= dn (+ qn r))", "(< (+ qn r) (+ dn n))", "(<= en r)", "(< r (+ en n))"],
                "(and (< (- 0 n) (- dn qn en)) (< (- dn qn en) n))",
            ),
            integer("n x", ["(>= n 1)", "(>= x 1)"], "(>= (* x n) n)"),
            integer("n x", ["(>= n 1)", "(<= x (- 1))"], "(<= (* x n) (- n))"),
        ),
    ),
    Law(
        "sort-sum",
        "Σ_j f(π(j)) = Σ_n f(n) for an order π of all rows: a sum does not depend on the order of "
        "its terms",
        (real("s a b", [], "(= (+ (+ s a) b) (+ (+ s b) a))"),),
    ),
    Law(
        "sort-groups",
        "#{g < G : c(g) ≤ j} = s(j) for ascending keys 0 ≤ s < G, c(g) of them at most g: a key at "
        "most g at place j has c(g) > j, as all before it are at most g too; a key above g has "
        "c(g) ≤ j; the number of g < G below s is min(s, G), by induction on G",
        (
            integer("x y g", ["(<= y x)", "(<= x g)"], "(<= y g)"),
            integer("x y g", ["(>= y x)", "(> x g)"], "(> y g)"),
            integer(
                "c j x g",
                ["(=> (<= x g) (>= c (+ j 1)))", "(=> (> x g) (<= c j))"],
                "(= (<= c j) (> x g))",
            ),
            integer("s n", ["(>= s 0)", "(= n 0)"], "(= n (ite (<= s 0) s 0))"),
            integer(
                "s g n m",
                ["(= n (ite (<= s g) s g))", "(= m (+ n (ite (< g s) 1 0)))"],
                "(= m (ite (<= s (+ g 1)) s (+ g 1)))",
            ),
        ),
    ),
    Law("exp-sum", "exp(a+b) = exp(a)·exp(b)"),
    Law("log-product", "log(exp(a)·b) = a + log(b) for b > 0"),
    Law("exp-positive", "exp(a) > 0, and exp(−∞) = 0"),
    Law(
        "function",
        "tanh, erf, rsqrt, sqrt, silu, gelu, sin, cos … are functions: equal arguments give "
        "equal results, and nothing else is used of them",
    ),
    Law(
        "row-function",
        "topk, sort, argmax, cumprod … are functions of a whole row of their operand and of the "
        "place asked for in it",
    ),
    Law(
        "sort-order",
        "sort gives every row one place, with keys in order: its indices are one-to-one on all "
        "rows",
    ),
    Law(
        "mask-minimum",
        "a constant at or below the most negative float16 stands for −∞: a key masked by it has "
        "weight 0, as it does in floats while scores stay bounded",
    ),
    Law(
        "constants",
        "numbers written in a program are meant to 40 bits: 1/√8 and 8^−½ are one, though their "
        "last bits differ",
    ),
    Law("finite", "no input, weight or intermediate tensor holds a nan or an infinity"),
    Law(
        "in-range",
        "indices that are data (token ids) lie within the tensor they index, as they must for the "
        "original to run",
    ),
    Law(
        "live-key",
        "each row of an attention has a key that is not masked: a fused kernel gives zeros for a "
        "row without one, eager attention NaN",
    ),
)

AXIOMS = tuple(law for law in LAWS if law.axiom)
LEMMAS = tuple(law for law in LAWS if not law.axiom)

CLAIMS: list[dict[str, str]] = []
"""Logs of condition claims being kept: SMT-LIB text → what it is for."""


def render(laws: tuple[Law, ...] = LAWS) -> str:
    """The laws as Markdown, for docs/trusted.md."""
    rows = ["Lemmas, each discharged by the solvers in every certificate:", ""]
    rows += [f"- `{law.name}`: {law.statement}" for law in laws if not law.axiom]
    rows += ["", "Axioms, trusted:", ""]
    rows += [f"- `{law.name}`: {law.statement}" for law in laws if law.axiom]
    return "\n".join(rows)
