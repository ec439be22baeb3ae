"""A program's calls in another order, some of them more than once.

    a → b → c, b → d    becomes    a → b → c, a → b' → d

Side condition: every run comes after those it reads. Claim: the outputs are equal, as every run
computes what the call it stands for does (calls are functional).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Protocol

from torch import fx

from quire.capture.build import rebuild
from quire.capture.program import Program


class Run(Protocol):
    """One run of `node`: `sources` names, for each node it reads, the stage of the run meant."""

    @property
    def node(self) -> fx.Node: ...
    @property
    def stage(self) -> Hashable: ...
    @property
    def sources(self) -> Mapping[fx.Node, Hashable]: ...


def rearrange(program: Program, runs: Iterable[Run]) -> Program:
    """`program` as the given runs of its calls; calls that none of them names are dropped."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    made: dict[tuple[fx.Node, Hashable], fx.Node] = {}
    latest: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            new[node] = graph.node_copy(node)
    for run in runs:

        def source(node: fx.Node, run: Run = run) -> fx.Node:
            return new[node] if node in new else made[node, run.sources[node]]

        copy = graph.node_copy(run.node, source)
        made[run.node, run.stage] = latest[run.node] = copy
    output = next(n for n in program.graph.nodes if n.op == "output")
    graph.node_copy(output, lambda n: new[n] if n in new else latest[n])
    return rebuild(program, graph, new)
