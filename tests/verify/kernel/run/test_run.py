"""Kernels on numbers: equal in the field without tolerance; lies differ, and a script shows it."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest
import torch
from torch import nn

import quire
from quire.capture.export import export, from_exported
from quire.fusing import tables_of
from quire.kernel.compile import KernelPlan, compile_program
from quire.verify.claims import RefutedError
from quire.verify.kernel.prove import prove_kernel
from quire.verify.kernel.run.exact import exact_kernel
from quire.verify.kernel.run.witness import search
from quire.verify.kernel.tables import Tables
from tools.mutate_kernel import plan_of

RANGES = {"args[0]": (0, 63), "args[1]": (0, 139), "args[2]": (0, 139)}
"""Tokens, slots and starts."""


@pytest.fixture(scope="module")
def llama() -> KernelPlan:
    return plan_of("llama")


def test_a_decode_step_is_equal_without_tolerance(llama: KernelPlan) -> None:
    found = exact_kernel(llama.program, llama.source, tables_of(llama), RANGES)
    assert found.equal is True, found.reason
    assert found.runs == 2 and found.chance < 1e-9


def test_routing_is_equal_without_tolerance() -> None:
    plan = plan_of("mixtral", 1)
    found = exact_kernel(plan.program, plan.source, tables_of(plan), RANGES, seeds=1)
    assert found.equal is True, found.reason


LIES = {
    "a dropped barrier": (" q.wait();", ""),
    "another scale": ("real(0.3535533905932738f)", "real(0.3535534f)"),
    "a sum without its last": ("q.sum(32, ", "q.sum(31, "),
    "another function": ("q.sigmoid(", "q.tanh("),
    "a last key less": (" + 1)))); },", " + 0)))); },"),
}


@pytest.mark.parametrize("kind", LIES)
def test_lies_differ(llama: KernelPlan, kind: str) -> None:
    lie = llama.source.replace(*LIES[kind])
    assert lie != llama.source
    found = exact_kernel(llama.program, lie, tables_of(llama), RANGES)
    assert found.equal is False, found.reason


def test_shared_bytes_are_found(llama: KernelPlan) -> None:
    tables = tables_of(llama)
    at = dict.fromkeys(tables.offsets, 0)
    found = exact_kernel(llama.program, llama.source, attrs.evolve(tables, offsets=at), RANGES)
    assert found.equal is False


def test_tables_are_read_back(llama: KernelPlan) -> None:
    tables = tables_of(llama)
    again = Tables.parse(tables.text())
    assert again.text() == tables.text()


def small_plan() -> KernelPlan:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 8))
    exported = export(model.eval(), (torch.randn(3, 16),))
    return compile_program(from_exported(exported, writes=True), "", "small")


def test_a_certificate_states_the_chance() -> None:
    plan = small_plan()
    found = prove_kernel(plan.program, plan.source, tables_of(plan), exact=True)
    assert found.verdict == "proved", found.reason
    (claim,) = [c for c in found.claims if c.kind == "exact run"]
    assert claim.text.startswith("equal without tolerance") and "chance ≤" in claim.text


def test_a_refuted_kernel_has_a_script_that_fails(tmp_path) -> None:
    plan = small_plan()
    honest = search(plan.program, plan.source, tables_of(plan), {})
    assert honest is None
    lie = plan.source.replace("q.erf(", "q.tanh(")
    assert lie != plan.source
    found = prove_kernel(plan.program, lie, tables_of(plan))
    assert found.verdict == "refuted"
    (claim,) = [c for c in found.claims if c.kind == "witness"]
    assert "output 0 differs by" in claim.reason
    script = tmp_path / "witness.py"
    script.write_text(claim.rule)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert run.stderr.strip().startswith("output 0 differs by"), run.stderr
    script.write_text(claim.rule.replace("q.tanh(", "q.erf("))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout == "equal\n"


def test_rounding_to_bf16_is_no_difference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).bfloat16().eval()
    exported = export(model, (torch.randn(3, 64).bfloat16(),))
    plan = compile_program(from_exported(exported, writes=True), "", "rounded")
    assert search(plan.program, plan.source, tables_of(plan), {}) is None


def test_fuse_hands_the_script_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = compile_program

    def lying(*args, **kwargs) -> KernelPlan:
        plan = honest(*args, **kwargs)
        text = plan.source.replace("q.erf(", "q.tanh(")
        return attrs.evolve(plan, rendered=attrs.evolve(plan.rendered, source=text))

    monkeypatch.setattr("quire.fusing.compile_program", lying)
    with pytest.raises(RefutedError) as caught:
        quire.fuse(nn.GELU(), (torch.randn(3, 8),))
    assert "found = difference(" in caught.value.witness


def test_fuse_runs_exactly_when_asked() -> None:
    fast = quire.fuse(nn.Sequential(nn.Linear(8, 8), nn.SiLU()), (torch.randn(3, 8),), exact=True)
    assert fast.certificate.verdict == "proved"
    assert any(c.kind == "exact run" for c in fast.certificate.claims)


def test_a_law_that_the_field_lacks_refutes_nothing() -> None:
    model = nn.LogSoftmax(-1).eval()
    plan = compile_program(from_exported(export(model, (torch.randn(3, 8),)), writes=True))
    found = prove_kernel(plan.program, plan.source, tables_of(plan), exact=True)
    assert found.verdict != "refuted"
    (claim,) = [c for c in found.claims if c.kind == "exact run"]
    assert claim.verdict != "refuted"
