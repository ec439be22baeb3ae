"""What the claim about gradients rests on: nothing stops them, and their mean is taken."""

from __future__ import annotations

import attrs
import pytest

from quire.shard_proof import hooks
from quire.verify.shard.gradient import gradient_claims
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Source, Task
from tests.verify.shard.cases import sharded
from tools.mutate_runtime import MEAN, RUNTIME


def told(task: Task, old: str, new: str) -> Task:
    sources = [Source(s.module, s.call, s.text.replace(old, new)) for s in task.sources]
    assert [s.text for s in sources] != [s.text for s in task.sources]
    return attrs.evolve(task, sources=tuple(sources))


def test_the_mean_is_taken() -> None:
    (claim,) = gradient_claims(sharded("gpt2", 13, 4, "ring"), hooks().reduction, ())
    assert claim.verdict == "proved"
    assert "after their mean over the ranks" in claim.text


def test_left_to_others() -> None:
    own = hooks(reduce_gradients=False)
    (claim,) = gradient_claims(sharded("gpt2", 13, 4, "ring"), own.reduction, ())
    assert claim.verdict == "proved"
    assert "as DDP and FSDP2 do" in claim.text


@pytest.mark.parametrize("lie", [lie for lie in RUNTIME if lie.file == MEAN])
def test_another_reduction_is_not_proved(lie: object) -> None:
    reduction = lie.told(hooks()).reduction  # type: ignore[attr-defined]
    (claim,) = gradient_claims(sharded("gpt2", 13, 4, "ring"), reduction, ())
    assert claim.verdict == "unknown"


def test_a_stopped_gradient_is_not_proved() -> None:
    """Values are the model's, the forward claims hold; gradients would be lost."""
    honest = sharded("llama", 13, 4, "ring")
    stopped = told(
        honest, "aten.mul.Tensor(silu, linear_5)", "aten.mul.Tensor(silu.detach(), linear_5)"
    )
    found = prove_task(stopped, hooks(), refute=False)
    assert found.verdict == "unknown"
    assert "stops gradients" in found.reason
    assert prove_task(stopped, hooks()).verdict == "refuted"
