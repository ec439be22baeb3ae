"""What is to be proved, and what the prover is given of the runtime: data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from quire.capture.program import Program
from quire.verify.shard.order import Place

Hint = Place | None
"""Where a tensor lies: this rank's rows of it, or all of it on every rank."""

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


@attrs.frozen(eq=False)
class Hooks:
    """The runtime: its files by module name, the class that reduces gradients ("" if others take
    their mean), and its table of each rank's rows for (length, ranks, ring)."""

    texts: Mapping[str, str]
    reduction: str
    runs: Callable[[int, int, int], Runs]
