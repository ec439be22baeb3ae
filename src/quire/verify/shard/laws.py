"""What the proof of a sharded program rests on beside `verify.laws`: lemmas and axioms by name."""

from __future__ import annotations

from quire.verify.laws import Law, integer, larger, real

_OFFSETS = ["(>= c 1)", "(>= o 0)", "(< o c)", "(>= u 0)", "(< u c)"]

SHARD_LAWS = (
    Law(
        "places",
        "the place of a row is one-to-one onto the padded sequence, for every length and rank: "
        "the blocks m and 2R−1−m of the R members are all blocks, each once, and k·c + o = k'·c + "
        "u with offsets below c only for k = k', o = u",
        (
            integer("c d o u", [*_OFFSETS, "(>= d 1)"], "(not (= (* d c) (- u o)))"),
            integer(
                "r m n",
                ["(>= m 0)", "(< m r)", "(>= n 0)", "(< n r)"],
                "(not (= m (- (- (* 2 r) 1) n)))",
            ),
            integer(
                "c d o",
                ["(>= c 1)", "(>= o 0)", "(< o c)", "(>= d 0)"],
                "(>= (- (+ (* d c) (- c 1)) o) 0)",
            ),
        ),
    ),
    Law(
        "rank-sum",
        "Σ over ranks of Σ over their rows of f(place) = Σ over the sequence of f, if f is 0 past "
        "its end: a sum does not depend on the order of its terms, by induction over places",
        (
            real("s a b", [], "(= (+ (+ s a) b) (+ (+ s b) a))"),
            real("s z", ["(= z 0.0)"], "(= (+ s z) s)"),
        ),
    ),
    Law(
        "rank-extreme",
        "max over ranks of max over their rows of f(place) = max over the sequence of f, if f is "
        "−∞ past its end (min likewise): an extreme does not depend on the order of its terms, nor "
        "on how often one is taken",
        (
            real(
                "s a b", [], f"(= {larger(larger('s', 'a'), 'b')} {larger(larger('s', 'b'), 'a')})"
            ),
            real("s", [], f"(= {larger('s', 's')} s)"),
        ),
    ),
    Law(
        "replica-sum",
        "the sum over P ranks of what is the same on each is P times it",
        (real("p s x t", ["(= s (* p x))", "(= t (+ s x))"], "(= t (* (+ p 1.0) x))"),),
    ),
    Law(
        "gradient-mean",
        "each rank's result is L(θ₁ … θ_P) with L(θ … θ) the model's loss: by the chain rule the "
        "ranks' gradients g_r, taken as if the loss were the sum of all P results, add up to P "
        "times the model's, and their mean is the model's",
        (real("p s g m", ["(> p 0.0)", "(= s (* p g))", "(= (* m p) s)"], "(= m g)"),),
    ),
    Law(
        "hooks",
        "ranks.… and ring_attention, the kernel of one attention with its hops, compute what "
        "runtime/collectives.py, runtime/row_parts.py and runtime/ring_attention.py say they "
        "compute",
    ),
    Law(
        "transpose",
        "the registered backward of a collective is its transpose: all-to-all ↔ all-to-all, "
        "all-gather ↔ reduce-scatter, all-reduce ↔ all-reduce, my_rows ↔ place_rows, take_rows ↔ "
        "put_rows, fill_rows ↔ fill_rows with 0",
    ),
    Law(
        "attention-backward",
        "the registered backward of ring_attention is the derivative of what it computes",
    ),
    Law(
        "draws",
        "what is drawn for a tensor that all ranks hold is the same on each, as their generators "
        "are in one state; what each rank draws for its own rows, of an op that draws each element "
        "apart, is its rows of one outcome, as their streams are apart; what it is may be any: "
        "results are the model's for the same outcomes",
    ),
    Law("replicas", "all ranks hold the same parameters and are given the same batch"),
    Law(
        "autograd",
        "torch's backward of an ATen op is the derivative of what it computes, and so is that of "
        "the product of rows in groups that transformers registers; a choice of experts, and the "
        "order of rows by it, are taken as they are",
    ),
)
