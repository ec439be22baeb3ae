"""Folds over a sequence that the ranks do not divide: padding rows add nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.plan.shard.plan import Step
from quire.runtime.sharded import shard_tree
from quire.shard_proof import hooks, task
from quire.sharding import built, names_of, plan_shards, topology_of
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Task
from tests.ranks import mesh

aten: Any = torch.ops.aten
SUM = 2


class Folds(nn.Module):
    """Two tensors of one attention's rows, and a fold over them by its name in `FOLDS`."""

    def __init__(self, fold: str) -> None:
        super().__init__()
        self.fold, self.qkv, self.up = fold, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        a, b = torch.tanh(mixed), torch.sigmoid(self.up(mixed)) + 1
        return FOLDS[self.fold](a, b, labels)


def _likely(a: Tensor, labels: Tensor) -> Tensor:
    return aten.nll_loss_nd(a.flatten(0, 1), labels.flatten(), None, SUM)


FOLDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "squares": lambda a, b, _: aten.mse_loss(a, b, SUM),
    "mean of squares": lambda a, b, _: aten.mse_loss(a, b),
    "product": lambda a, b, _: a.transpose(1, 2) @ b,
    "sum": lambda a, b, _: ((a - b) ** 2).sum(),
    "likelihood": lambda a, b, labels: _likely(a, labels),
    "largest": lambda a, b, _: a.amax(1),
    "norm": lambda a, b, _: torch.linalg.vector_norm(a, float("inf"), 1),
    "count": lambda a, b, _: torch.histc(a.flatten(), 4, -1, 1),
    "count above": lambda a, b, _: torch.histc(b.flatten(), 4, 1, 2),
}


def _batch(size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, size, 8, dtype=torch.float64), torch.randint(8, (2, size))


def _captured(fold: str, size: int) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Folds(fold).double()
    return model, from_exported(export_training(model, _batch(size)))


def _last(fold: str, size: int) -> Step:
    """How the fold, which is the model's output, runs on 4 ranks."""
    _, program = _captured(fold, size)
    plan = plan_shards(program, 4, topology_of(None, "cpu"))
    return next(s for s in plan.steps if s.node == program.outputs[0].name)


@pytest.mark.parametrize(
    ("fold", "kind", "filled"),
    [
        ("squares", "sum", [0, 1]),
        ("mean of squares", "mean", [0, 1]),
        ("product", "sum", [0, 1]),
        ("sum", "sum", [0]),
        ("likelihood", "sum", [0, 1]),
        ("largest", "max", [0]),
        ("count above", "sum", [0]),
    ],
)
def test_every_operand_is_filled(fold: str, kind: str, filled: list[int]) -> None:
    step = _last(fold, 13)
    assert (step.kind, [i for i, _ in step.fills]) == (kind, filled)
    assert not _last(fold, 16).fills


@pytest.mark.parametrize(("fold", "kind"), [("norm", "max"), ("count", "sum")])
def test_what_no_fill_keeps_from_counting_runs_whole(fold: str, kind: str) -> None:
    """The largest absolute value of −∞ is ∞, and 0 lies in a bin: but where nothing is padded."""
    assert _last(fold, 13).kind == "whole"
    assert _last(fold, 16).kind == kind


def _answer(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(*batch)
    if out.requires_grad:
        (out * torch.arange(1.0, out.numel() + 1).view_as(out)).sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def _on_ranks(fold: str) -> Any:
    def make(model: nn.Module, args: Any, kwargs: Any, number: int) -> Any:
        program = _captured(fold, 13)[1]
        # Ulysses joins no blocks: a ring would, in fp32.
        plan = plan_shards(program, 2, topology_of(None, "cpu"), ways=["ulysses"])
        return built(model, program, plan)

    batch = _batch(13)
    return _answer(shard_tree(_captured(fold, 13)[0], mesh(2), make, batch, {}), batch)


@pytest.mark.parametrize("fold", FOLDS)
def test_equal_to_one_process(ranks: Any, fold: str) -> None:
    want = _answer(_captured(fold, 13)[0], _batch(13))
    for got in ranks.run(_on_ranks, fold=fold):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def _task(fold: str) -> Task:
    model, program = _captured(fold, 13)
    plan = plan_shards(program, 4, topology_of(None, "cpu"))
    return task(program, plan, built(model, program, plan).functions, names_of(model, program))


@pytest.mark.parametrize("fold", ["product", "sum", "likelihood", "largest"])
def test_folds_are_proved(fold: str) -> None:
    found = prove_task(_task(fold), hooks())
    (output,) = [c for c in found.claims if c.text.startswith("output")]
    assert output.verdict == "proved", found.reason


@pytest.mark.parametrize("fold", ["squares", "mean of squares"])
@pytest.mark.parametrize("which", [0, 1])
def test_the_proof_asks_for_every_fill(fold: str, which: int) -> None:
    """Proved as it is; not where one tensor's padding is left as it was."""
    honest = _task(fold)
    assert prove_task(honest, hooks()).verdict == "proved"
    (root,) = [s for s in honest.sources if not s.module]
    fills = re.findall(r"(\w+ = )(ranks\.fill_rows\((\w+), .*\))", root.text)
    assert len(fills) == 2
    left, call, source = fills[which]
    told = attrs.evolve(root, text=root.text.replace(left + call, left + source))
    sources = tuple(told if s is root else s for s in honest.sources)
    assert prove_task(attrs.evolve(honest, sources=sources), hooks()).verdict != "proved"
