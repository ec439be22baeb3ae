"""Ops of fused graphs: each is proved, and lies about its emitted source are not accepted."""

from __future__ import annotations

from functools import cache
from itertools import islice

import pytest

from quire.fusing import tables_of
from quire.kernel.compile import KernelPlan
from quire.verify.kernel.prove import prove_kernel
from tests.verify.kernel.graphs import OPS, graph
from tools.mutate_kernel import lies, plan_of_graph


@cache
def plan(name: str) -> KernelPlan:
    return plan_of_graph(*graph(name))


@pytest.mark.parametrize("name", OPS)
def test_proved(name: str) -> None:
    made = plan(name)
    found = prove_kernel(made.program, made.source, tables_of(made), witness=False)
    assert (found.verdict, found.reason) == ("proved", "")


@pytest.mark.parametrize("name", OPS)
def test_no_lie_is_accepted(name: str) -> None:
    made = plan(name)
    told = list(islice(lies(made, 0), 6))
    assert len({kind for kind, _, _ in told}) > 3
    accepted = [
        (kind, source) for kind, source, other in told
        if prove_kernel(made.program, source, other, witness=False).verdict == "proved"
    ]  # fmt: skip
    assert accepted == []
