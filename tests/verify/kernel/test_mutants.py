"""Lies about two kernels: none is accepted. `make kernel-mutants` tells 200."""

from __future__ import annotations

from itertools import islice

import pytest

from quire.fusing import tables_of
from quire.verify.kernel.prove import prove_kernel
from tools.mutate_kernel import lies, plan_of


@pytest.mark.parametrize(("name", "seed"), [("llama", 1), ("mixtral", 2)])
def test_none_is_accepted(name: str, seed: int) -> None:
    plan = plan_of(name)
    told = list(islice(lies(plan, seed), 12))
    assert len({kind for kind, _, _ in told}) == 12
    accepted = [
        kind for kind, source, other in told
        if prove_kernel(plan.program, source, other, witness=False).verdict == "proved"
    ]  # fmt: skip
    assert accepted == []


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("llama", "scratch<float>(0)", "scratch<float>(-64)", "leaves the worker's scratch"),
        ("mixtral", "q.max(4, ", "q.max(3, ", "largest subtracted"),
    ],
    ids=["scratch before its first byte", "a shift that is not the largest"],
)
def test_lies_that_were_accepted_once(name: str, old: str, new: str, reason: str) -> None:
    plan = plan_of(name)
    lie = plan.source.replace(old, new)
    assert lie != plan.source
    found = prove_kernel(plan.program, lie, tables_of(plan), witness=False)
    assert found.verdict != "proved"
    assert reason in found.reason
