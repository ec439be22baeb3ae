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
        if prove_kernel(plan.program, source, other).verdict == "proved"
    ]  # fmt: skip
    assert accepted == []


def test_scratch_before_the_first_byte_is_refused() -> None:
    plan = plan_of("llama")
    lie = plan.source.replace("q.template scratch<float>(0)", "q.template scratch<float>(-64)")
    assert lie != plan.source
    found = prove_kernel(plan.program, lie, tables_of(plan))
    assert found.verdict != "proved"
    assert "leaves the worker's scratch" in found.reason


def test_a_shift_that_is_not_the_largest_is_refused() -> None:
    plan = plan_of("mixtral")
    lie = plan.source.replace("q.max(4, ", "q.max(3, ")
    assert lie != plan.source
    found = prove_kernel(plan.program, lie, tables_of(plan))
    assert found.verdict != "proved"
    assert "largest subtracted" in found.reason
