"""Whole kernels: honest ones are proved, and what is proved can be checked again."""

from __future__ import annotations

import itertools
import re
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import quire
from quire.capture.export import export, from_exported
from quire.fusing import tables_of
from quire.kernel.compile import KernelPlan, compile_program
from quire.kernel.ir import BLOCKS
from quire.verify.kernel.memory import Epoch
from quire.verify.kernel.prove import prove_kernel
from tools.mutate_kernel import plan_of


def verdict(plan: KernelPlan, source: str = "", **tables):
    found = prove_kernel(
        plan.program, source or plan.source, attrs.evolve(tables_of(plan), **tables)
    )
    return found.verdict, found.reason


def mlp_plan() -> KernelPlan:
    mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 16)).eval()
    rows = torch.export.Dim("rows", min=1, max=32)
    exported = export(mlp, (torch.zeros(4, 16),), {}, ({0: rows},))
    return compile_program(from_exported(exported, writes=True), "", "mlp")


@pytest.fixture(scope="module")
def mlp() -> KernelPlan:
    return mlp_plan()


@pytest.fixture(scope="module")
def llama() -> KernelPlan:
    return plan_of("llama")


def test_mlp(mlp: KernelPlan) -> None:
    assert verdict(mlp) == ("proved", "")


@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_weights_in_blocks(scheme: str) -> None:
    dtype = torch.bfloat16 if scheme == "lossless" else torch.float32
    layers = nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)
    linear = nn.Sequential(nn.ReLU(), *layers).eval().to(dtype)
    program = from_exported(export(linear, (torch.zeros(4, 64, dtype=dtype),)), writes=True)
    plan = compile_program(program, scheme, "blocks")
    assert f"quire::{scheme}<64>" in plan.source and f"quire::{scheme}<96>" in plan.source
    assert verdict(plan) == ("proved", "")
    # Weights are read by the columns that they have, and by whole rows.
    for wrong in (f"{scheme}<64>", f"{scheme}<96>"):
        other = plan.source.replace(wrong, f"{scheme}<32>")
        assert verdict(plan, other)[0] == "unknown"
    part = plan.source.replace("64, 4, 64);", "64, 4, 32);")
    assert part != plan.source
    assert "whole rows" in verdict(plan, part)[1]


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_families(name: str) -> None:
    assert verdict(plan_of(name)) == ("proved", "")


def test_a_batch_of_one() -> None:
    assert verdict(plan_of("llama", rows=1)) == ("proved", "")


def test_certificate_is_checked_again(llama: KernelPlan, tmp_path) -> None:
    found = prove_kernel(llama.program, llama.source, tables_of(llama))
    assert found.verdict == "proved"
    path = found.save(tmp_path / "llama.cert")
    again = quire.verify(path, solver="both")
    assert again.verdict == "proved" and set(again.solvers) == {"z3", "cvc5"}
    assert again.source == llama.source
    assert {"coverage", "order", "equality", "integer"} <= {c.kind for c in again.claims}
    assert "any number of threads" in again.about


def test_equal_layers_are_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deeper model runs as many epochs on terms as a shallower one."""
    ran = []
    original = Epoch.run
    monkeypatch.setattr(Epoch, "run", lambda self: (ran.append(1), original(self))[1])
    counts = []
    for layers in (3, 5):
        ran.clear()
        assert verdict(plan_of("llama", layers)) == ("proved", "")
        counts.append(len(ran))
    assert counts[0] == counts[1]


def test_concrete_faults_are_refuted(llama: KernelPlan) -> None:
    tables = tables_of(llama)
    temps = [b.name for b in tables.slots if b.role == "temp"]
    said, reason = verdict(llama, offsets={**tables.offsets, temps[-1]: tables.offsets[temps[-2]]})
    assert said == "refuted" and "share bytes" in reason


def test_a_dropped_barrier_is_not_accepted(llama: KernelPlan) -> None:
    waits = llama.source.count(" q.wait();")
    for k in range(waits - 1):
        parts = llama.source.split(" q.wait();")
        source = " q.wait();".join(parts[: k + 1]) + "".join(parts[k + 1 : k + 2])
        source += "".join(" q.wait();" + p for p in parts[k + 2 :])
        assert source.count(" q.wait();") == waits - 1
        assert verdict(llama, source)[0] != "proved"


def test_fuse_gives_a_certificate() -> None:
    mlp = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)).eval()
    fast = quire.fuse(mlp, (torch.zeros(2, 8),))
    assert fast.certificate.verdict == "proved"
    assert fast.certificate.source == fast.kernel.source
    assert quire.fuse(mlp, (torch.zeros(2, 8),), verify=False).certificate is None


class Op(nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)


@pytest.mark.parametrize(
    "f",
    [
        # Sums of integers, one within the other.
        lambda x: x.view(2, 2, 4).argmax(-1).sum(),
        lambda x: x.scatter(1, torch.tensor([[0, 5], [2, 1]]), x[:, :2] * 9),
    ],
    ids=["integers", "several writers"],
)
def test_unknown_says_why(f: Any) -> None:
    program = from_exported(export(Op(f), (torch.rand(2, 8),)), writes=True)
    said, reason = verdict(compile_program(program, "", "op"))
    assert said == "unknown" and reason


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.topk(3, -1)[0] + x.sort(-1, descending=True)[0][:, :3] + x.max(-1, True)[0],
        lambda x: x.cumsum(1) + (x > 0).sum(1, keepdim=True) - x.sign(),
        lambda x: nn.functional.elu(x) + nn.functional.softplus(x) + nn.functional.leaky_relu(x),
        lambda x: torch.cat([x[:, 5:], x * 2, -x[:, :2].repeat(1, 2)], 1),
        # Rows of an attention, merged by units: once each (they were merged by every element's).
        lambda x: nn.functional.scaled_dot_product_attention(*(x.view(1, 1, 2, 8),) * 3),
    ],
    ids=["order", "prefixes", "activations", "rearranged", "attention"],
)
def test_graphs(f: Any) -> None:
    program = from_exported(export(Op(f), (torch.rand(2, 8),)), writes=True)
    assert verdict(compile_program(program, "", "op")) == ("proved", "")


def test_statements_of_one_loop_are_not_in_order() -> None:
    """What a loop's first statement writes, its second may read only of the same round: refused."""
    plan = mlp_plan()
    loop = r"  q\.each\(q\.length\(0\), \[&\]\(auto i\d+\) \{\n.*?\n  \}\);\n"
    loops = re.findall(loop, plan.source, re.S)
    first, second = next(
        (a, b)
        for a, b in itertools.pairwise(loops)
        if f"q.load({re.search(r'q.store.(p[0-9]+)', a)[1]}," in b  # type: ignore[index]
    )
    assert first + second in plan.source
    index, other = (re.search(r"auto (i\d+)", x)[1] for x in (first, second))  # type: ignore[index]
    body = second.split("\n", 1)[1].rsplit("  });\n", 1)[0].replace(other, index)
    joined = first.rsplit("  });\n", 1)[0] + body + "  });\n"
    assert verdict(plan, plan.source.replace(first + second, joined))[0] == "unknown"
