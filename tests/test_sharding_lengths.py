"""New lengths of a sharded model, on 2 Gloo ranks against one process: loss and every gradient, how
often it is captured, how many programs are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import quire
import quire.sharding
from quire.errors import InputError
from tests.ranks import mesh
from tests.shard_models import build

Answer = dict[str, Any]


@contextmanager
def _captures() -> Iterator[list[int]]:
    """Grows by one for each capture."""
    own, found = quire.sharding.export_training, []

    def counted(*args: Any) -> Any:
        found.append(1)
        return own(*args)

    quire.sharding.export_training = counted
    try:
        yield found
    finally:
        quire.sharding.export_training = own


def _first_two() -> bool:
    """Two ranks are enough; all four make the mesh."""
    mesh(2)
    return dist.get_rank() < 2


def _step(model: nn.Module, batch: dict[str, Tensor]) -> Answer:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "grads": grads}


def _same(found: Answer, want: Answer) -> None:
    assert abs(found["loss"] - want["loss"]) <= 1e-5 * abs(want["loss"])
    assert found["grads"].keys() == want["grads"].keys()
    largest = max(g.abs().max() for g in want["grads"].values())
    for name, grad in want["grads"].items():
        error = (found["grads"][name] - grad).norm()
        assert error <= 1e-5 * grad.norm() + 1e-7 * largest, name


def _lengths(family: str, sizes: list[int], **options: Any) -> list[Answer]:
    if not _first_two():
        return []
    model, batch = build(family, sizes[0])
    found = []
    with _captures() as captures:
        small: Any = quire.shard(model, batch, mesh=mesh(2), **options)
        for size in sizes:
            batch = build(family, size)[1]
            answer = _step(small, batch)
            runner = small._quire
            kept = {number for _, number, _ in runner.tables}
            assert kept == set(runner.kept) == set(runner.keeps)
            found.append(answer | {"captures": len(captures), "programs": len(runner.kept)})
            found[-1] |= {"made": runner.made, "source": small.source(), "plan": small.plan}
    found[-1]["verdicts"] = (small.certificate and small.certificate.verdict,)
    found[-1]["ranges"] = [r[1:] for r in small.certificate.sizes] if small.certificate else []
    return found


def _whole(family: str, sizes: list[int]) -> list[Answer]:
    model = build(family, sizes[0])[0]
    return [_step(model, build(family, size)[1]) for size in sizes]


def test_lengths_share_programs_and_captures(ranks: Any) -> None:
    """The example's own, then one capture for all others: programs for 21 … 24 and 33 … 40."""
    sizes = [37, 22, 23, 37, 40, 39, 24]
    first, second, *_ = ranks.run(_lengths, family="llama", sizes=sizes)
    for answers in (first, second):
        for found, want in zip(answers, _whole("llama", sizes), strict=True):
            _same(found, want)
        assert [a["captures"] for a in answers] == [1, 2, 2, 2, 2, 2, 2]
        assert [a["made"] for a in answers] == [1, 2, 2, 2, 3, 3, 3]
        assert answers[1]["source"] == answers[2]["source"] == answers[6]["source"]
        assert "def forward(self, input_ids, labels, length):" in answers[1]["source"]
        assert "lengths 21 to 24" in answers[1]["plan"].explain()
        assert answers[-1]["verdicts"] == ("proved",)
        assert answers[-1]["ranges"] == [(21, 24)]
    assert [a["source"] for a in first] == [a["source"] for a in second]


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_no_key_beyond_the_end_is_seen(ranks: Any, family: str) -> None:
    """Attention both ways, and a decoder of free length over an encoder of one."""
    sizes = [13, 19, 17]
    answers = ranks.run(_lengths, family=family, sizes=sizes, verify=False)[0]
    for found, want in zip(answers, _whole(family, sizes), strict=True):
        _same(found, want)
    assert [a["captures"] for a in answers] == [1, 2, 2]
    assert [a["made"] for a in answers] == [1, 2, 2]


def test_so_many_programs_are_kept(ranks: Any) -> None:
    sizes = [37, 22, 12, 37]
    answers = ranks.run(_lengths, family="gpt2", sizes=sizes, verify=False, programs=2)[0]
    for found, want in zip(answers, _whole("gpt2", sizes), strict=True):
        _same(found, want)
    assert [a["programs"] for a in answers] == [1, 2, 2, 2]
    # The example's was dropped, and is made again.
    assert [a["made"] for a in answers] == [1, 2, 3, 4]


def _interleaved() -> Answer | None:
    """Two lengths forward, then both backward, with layers made again there."""
    if not _first_two():
        return None
    model, batch = build("llama", 37)
    peak = quire.shard(model, batch, mesh=mesh(2), verify=False).plan.memory.peak
    small: Any = quire.shard(
        build("llama", 37)[0], batch, mesh=mesh(2), verify=False, memory=peak - 1
    )
    losses, ways = [], []
    for size in (37, 22, 24):
        losses.append(small(**build("llama", size)[1]).loss)
        ways += [how for _, how in small.plan.memory.regions]
        ways += ["parts"] if small.plan.memory.parts > 1 else []
    assert set(ways) - {"keep"}, ways
    total = sum(losses)
    total.backward()
    grads = {n: p.grad for n, p in small.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), "grads": grads}


def test_backward_after_other_lengths(ranks: Any) -> None:
    model = build("llama", 37)[0]
    loss: Any = sum(model(**build("llama", n)[1]).loss for n in (37, 22, 24))
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    for found in ranks.run(_interleaved)[:2]:
        _same(found, {"loss": loss.detach(), "grads": grads})


def _dropped() -> str:
    if not _first_two():
        return ""
    model, batch = build("llama", 37)
    peak = quire.shard(model, batch, mesh=mesh(2), verify=False).plan.memory.peak
    small: Any = quire.shard(
        build("llama", 37)[0], batch, mesh=mesh(2), verify=False, memory=peak - 1, programs=1
    )
    loss = small(**batch).loss
    small(**build("llama", 22)[1])
    with pytest.raises(InputError) as found:
        loss.backward()
    return str(found.value)


def test_backward_of_a_program_that_was_dropped_says_so(ranks: Any) -> None:
    for text in ranks.run(_dropped)[:2]:
        assert "dropped before its backward" in text and "programs=" in text


class Odd(nn.Module):
    """What depends on the length in Python: no range of lengths has one graph."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled, self.inner = scaled, nn.Linear(8, 24)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        y = x * float(x.shape[1]) ** -0.5 if self.scaled else x if x.shape[1] % 2 else -2 * x
        parts = self.inner(y).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return (out - goal).square().mean()


def _odd(scaled: bool) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    if not _first_two():
        return []
    torch.manual_seed(0)
    model, found = Odd(scaled), []
    small: Any = quire.shard(model, [torch.ones(2, 6, 8)] * 2, mesh=mesh(2), verify=False)
    for size in (6, 9, 10, 11, 9):
        x, goal = torch.randn(2, size, 8), torch.randn(2, size, 8)
        grads = []
        for one in (model, small):
            one.zero_grad()
            loss = one(x, goal)
            loss.backward()
            grads += [loss.detach(), one.inner.weight.grad.clone()]
        found.append(tuple(grads))
    assert small._quire.made == 4
    assert "a program of this length alone: " in small.plan.explain()
    return found


@pytest.mark.parametrize("scaled", [True, False])
def test_what_python_makes_of_a_length_is_captured_for_each(ranks: Any, scaled: bool) -> None:
    for answers in ranks.run(_odd, scaled=scaled)[:2]:
        for loss, grad, found, own in answers:
            torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(own, grad, rtol=1e-5, atol=1e-7)


def _apart() -> list[str]:
    if not _first_two():
        return []
    model, batch = build("gpt2", 13)
    small, texts = quire.shard(model, batch, mesh=mesh(2), verify=False), []
    small(**build("gpt2", 23)[1])
    for sizes in ((23, 24), (13, 23)):
        with pytest.raises(InputError) as found:
            small(**build("gpt2", sizes[dist.get_rank()])[1])
        texts.append(str(found.value))
    return texts


def test_ranks_given_other_lengths_are_told(ranks: Any) -> None:
    """Of one program, and of two of which one is the example's."""
    for texts in ranks.run(_apart)[:2]:
        assert len(texts) == 2
        assert all("different lengths" in t and "same whole batch" in t for t in texts)


def _prefill() -> list[tuple[Tensor, Tensor]]:
    if not _first_two():
        return []
    model, batch = build("llama", 13)
    model.eval()
    found = []
    with torch.no_grad():
        example = {"input_ids": batch["input_ids"]}
        small = quire.shard(model, example, mesh=mesh(2), outputs="whole", verify=False)
        for size in (22, 23):
            ids = build("llama", size)[1]["input_ids"]
            found.append((small(input_ids=ids).logits, model(input_ids=ids).logits))
    return found


def test_outputs_are_of_the_length_given(ranks: Any) -> None:
    for answers in ranks.run(_prefill)[:2]:
        for sharded, whole in answers:
            torch.testing.assert_close(sharded, whole, rtol=1e-4, atol=1e-5)
