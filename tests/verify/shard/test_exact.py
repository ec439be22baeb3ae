"""Forward and backward of simulated ranks in the finite field, without tolerance."""

from __future__ import annotations

import pytest

from quire.shard_proof import hooks
from quire.verify.exact import ExactRun
from quire.verify.shard.exact import REDUCTION, exact_shard_run
from quire.verify.shard.task import Hooks, Task
from tests.verify.shard.cases import sharded
from tools.mutate_runtime import RUNTIME
from tools.mutate_shard import LOCAL, lies


def run(task: Task, own: Hooks) -> ExactRun:
    texts = {**own.texts, REDUCTION: own.reduction}
    return exact_shard_run(
        task.program, task.sources, task.names, texts, ranks=task.ranks, outputs=task.outputs
    )


@pytest.mark.parametrize(
    ("ranks", "way"),
    [(2, "ulysses"), (2, "ring"), (4, "gathered"), (4, "ring"), (4, "hybrid"), (8, "ulysses")],
)
def test_a_llamas_training_step_is_equal(ranks: int, way: str) -> None:
    found = run(sharded("llama", 13, ranks, way), hooks())
    assert found.equal, found.reason
    assert found.chance < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "bert", "qwen3", "mixtral-aux"])
def test_other_families(family: str) -> None:
    found = run(sharded(family, 13, 4, "ring"), hooks())
    assert found.equal, found.reason


@pytest.mark.parametrize("lie", ["unrotated", "wrong gradient", "wrong heads"])
def test_lies_of_the_runtime_differ(lie: str) -> None:
    told = next(m for m in RUNTIME if m.kind == lie).told(hooks())
    way = "ulysses" if lie == "wrong heads" else "ring"
    assert run(sharded("llama", 13, 4, way), told).equal is False


def test_a_loss_of_a_ranks_own_routing_differs() -> None:
    every = lies(sharded("mixtral-aux", 13, 4, "ring"), hooks())
    (told,) = [m for m in every if m.kind == LOCAL and m.what.endswith("all of them")]
    assert run(told.task, told.hooks).equal is False


def test_what_is_too_large_is_not_run() -> None:
    task = sharded("gpt2", 13, 2, "ring")
    found = exact_shard_run(
        task.program,
        task.sources,
        task.names,
        hooks().texts,
        ranks=2,
        outputs=task.outputs,
        most=10,
    )
    assert found.equal is None
    assert "too many" in found.reason
