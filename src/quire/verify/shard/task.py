"""What is to be proved, and what the prover is given of the runtime: data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import sympy

from quire.capture.program import Program, evaluate
from quire.verify.shard.order import Place

Hint = Place | None
"""Where a tensor lies: this rank's rows of it, or all of it on every rank."""

Range = tuple[sympy.Symbol, int, int]
"""A length that is free, and the least and the largest that it may be."""

Runs = Sequence[Sequence[tuple[int, int, int]]]


@attrs.frozen
class Source:
    """The `call`-th call of module `module` ("" for the root) as the text of its `forward`."""

    module: str
    call: int
    text: str


@attrs.frozen(eq=False)
class Task:
    """What is claimed: the functions `sources`, run by each of `ranks` ranks, give `program`'s
    outputs, whole or this rank's rows as `outputs` says.

    `names` gives each parameter's, buffer's and constant's names in the module tree by its target
    in `program`. `hints` says where each tensor lies; a wrong one only makes a proof fail. Tensors
    in `own` are a rank's alone, such as its tokens sorted by expert: they stand for none of the
    model's, and are known by what made them.
    """

    program: Program
    sources: tuple[Source, ...]
    names: Mapping[str, Sequence[str]]
    ranks: int
    hints: Mapping[str, Hint]
    outputs: tuple[Hint, ...]
    plan: str = ""
    own: frozenset[str] = frozenset()
    lengths: tuple[int, ...] = ()
    """What the root's function is given after the user's tensors: `program` is that of these
    lengths."""
    ranges: tuple[Range, ...] = ()
    """Lengths that are free, in their place: it is proved for all of them. Hints then hold sizes as
    expressions of them, as `program` does."""

    def at(self, lengths: Sequence[int]) -> Task:
        """The task for one length of each range."""
        env = {name: n for (name, *_), n in zip(self.ranges, lengths, strict=True)}

        def put(at: Hint) -> Hint:
            if at is None:
                return None
            order = attrs.evolve(at.order, size=evaluate(at.order.size, env))
            return attrs.evolve(at, order=order)

        return attrs.evolve(
            self,
            program=self.program.at(env),
            hints={name: put(at) for name, at in self.hints.items()},
            outputs=tuple(map(put, self.outputs)),
            lengths=tuple(lengths),
            ranges=(),
        )


@attrs.frozen(eq=False)
class Hooks:
    """The runtime: its files by module name, the class that reduces gradients ("" if others take
    their mean), and its table of each rank's rows for (length, ranks, ring)."""

    texts: Mapping[str, str]
    reduction: str
    runs: Callable[[int, int, int], Runs]
