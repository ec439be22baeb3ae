"""The lemmas hold by both solvers; the document lists them; the axioms are tested in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.shard_proof import hooks
from quire.verify.check import solve
from quire.verify.laws import render
from quire.verify.shard.laws import SHARD_LAWS
from quire.verify.shard.simulate import Meeting, Runtime

TRUSTED = Path(__file__).parents[3] / "docs" / "trusted.md"


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_lemmas_hold(solver: str) -> None:
    texts = [text for law in SHARD_LAWS for text in law.obligations]
    assert solve(texts, solver) == ["unsat"] * len(texts)


def test_a_false_lemma_is_noticed() -> None:
    (law,) = [law for law in SHARD_LAWS if law.name == "gradient-mean"]
    forgotten = law.obligations[0].replace("(= (* m p) s)", "(= m s)")
    assert forgotten != law.obligations[0]
    assert solve([forgotten], "z3")[0] != "unsat"


def test_the_document_lists_them() -> None:
    text = TRUSTED.read_text(encoding="utf-8")
    shown = text.partition("<!-- shard-laws -->\n")[2].partition("\n<!-- /shard-laws -->")[0]
    assert shown == render(SHARD_LAWS)


SIZE, ROWS, RANKS = 13, 4, 4
AT = (1, 1, SIZE, RANKS, 4, "GROUP")
OPS: dict[str, tuple[tuple[int, ...], Any]] = {
    "all-to-all": ((RANKS, 3), lambda c, x: c.all_to_all(x, "GROUP")),
    "all-gather": ((2, 3), lambda c, x: c.all_gather(x, RANKS, "GROUP")),
    "all-reduce": ((3,), lambda c, x: c.sum_ranks(x, "GROUP")),
    "gather_rows": ((2, ROWS, 3), lambda c, x: c.gather_rows(x, *AT)),
    "my_rows": ((2, SIZE, 3), lambda c, x: c.my_rows(x, *AT, 0.0)),
    "fill_rows": ((2, ROWS, 3), lambda c, x: c.fill_rows(x, *AT, 0.0)),
    "fixed_rows": ((2, ROWS, 3), lambda c, x: c.fixed_rows(x, 1, 2, 5, *AT[2:])),
}


@pytest.mark.parametrize("name", OPS)
def test_transpose(name: str) -> None:
    """Σ_r ⟨f(x)_r, y_r⟩ = Σ_r ⟨x_r, backward(y)_r⟩ for the real ops on simulated ranks."""
    shape, op = OPS[name]
    meeting = Meeting(RANKS)
    runtime = Runtime(hooks().texts, meeting, lambda name, module: None)
    collectives = runtime.module("quire.runtime.collectives")

    def work(rank: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        out = op(collectives, x)
        y = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        (back,) = torch.autograd.grad(out, x, y)
        return (out.detach() * y).sum(), (x.detach() * back).sum()

    found = meeting.run(work)
    forward, backward = (sum(f[k] for f in found) for k in (0, 1))
    assert torch.allclose(torch.as_tensor(forward), torch.as_tensor(backward), rtol=1e-12)
