"""Sharded programs are proved, on any rank, and what is not shown is said."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

import quire
from quire.capture.export import from_exported
from quire.capture.training import export_training
from quire.plan.shard.head import only_losses
from quire.shard_proof import hooks, task
from quire.sharding import built, names_of, plan_shards, topology_of
from quire.verify.certificate import verify
from quire.verify.prove import reset
from quire.verify.shard.applied import Applied
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Task
from tests.verify.shard.cases import captured, sharded

WAYS = ("ulysses", "ring", "gathered", "hybrid")


@pytest.mark.parametrize("way", WAYS)
def test_a_llama_is_proved_at_a_length_that_the_ranks_do_not_divide(way: str) -> None:
    found = prove_task(sharded("llama", 13, 4, way), hooks())
    assert found.verdict == "proved", found.reason
    assert {c.kind for c in found.claims} >= {"mesh", "gradient", "equality", "law", "axiom"}
    outputs = [c.text for c in found.claims if c.text.startswith("output")]
    assert ["rows of dim 1" in text for text in outputs] == [False, True]


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "bert", "vit"])
@pytest.mark.parametrize("way", ["ring", "ulysses"])
def test_other_families_are_proved(family: str, way: str) -> None:
    """Sliding windows, padding masks, whole masks, a class token."""
    found = prove_task(sharded(family, 13, 4, way), hooks())
    assert found.verdict == "proved", found.reason


@pytest.mark.parametrize(
    ("family", "way"), [("mixtral", "ring"), ("mixtral", "ulysses"), ("mixtral-aux", "ring")]
)
def test_a_mixture_of_experts_is_proved(family: str, way: str) -> None:
    """Each rank sorts its own tokens by expert, padding among them; a loss of how they are spread
    counts those of all ranks."""
    found = prove_task(sharded(family, 13, 4, way), hooks())
    assert found.verdict == "proved", found.reason
    assert {"law:sort-groups:0", "axiom:sort-order"} <= {c.id for c in found.claims}


def test_tokens_of_a_range_that_is_not_known_are_not_given_to_experts() -> None:
    """What is known of topk's choice is that it names an expert: without it nothing is proved."""
    honest = sharded("mixtral", 13, 4, "ring")
    source = next(s for s in honest.sources if ".topk." in s.text)
    text = re.sub(r"(getitem_\d+) = topk\[1\]", r"\1 = aten.add.Tensor(topk[1], 1)", source.text)
    assert text != source.text
    told = [attrs.evolve(s, text=text) if s is source else s for s in honest.sources]
    found = prove_task(attrs.evolve(honest, sources=tuple(told)), hooks(), refute=False)
    assert found.verdict == "unknown"


def test_packed_documents_are_proved() -> None:
    found = prove_task(sharded("llama", 13, 2, "ring", packed=True), hooks())
    assert found.verdict == "proved", found.reason


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_more_ranks_take_no_more_proof(ranks: int) -> None:
    found = prove_task(sharded("gpt2", 13, ranks, "ulysses"), hooks())
    assert found.verdict == "proved", found.reason


def test_scores_and_loss_in_parts_of_the_rows() -> None:
    model, program = captured("llama", 13)
    program = only_losses(program)
    plan = plan_shards(program, 4, topology_of(None, "cpu"))
    made = built(model, program, attrs.evolve(plan, head_parts=3))
    goal = task(program, plan, made.functions, names_of(model, program))
    assert "cross_entropy_in_parts" in made.functions[-1].source
    found = prove_task(goal, hooks())
    assert found.verdict == "proved", found.reason


def test_the_file_is_checked_again_by_both_solvers(tmp_path: Path) -> None:
    found = prove_task(sharded("gpt2", 13, 4, "ring"), hooks())
    again = verify(found.save(tmp_path / "gpt2.cert"), solver="both")
    assert again.verdict == "proved", again.reason
    assert set(again.solvers) == {"z3", "cvc5"}
    assert "gradients equal on every rank" in again.about


@pytest.mark.parametrize(("family", "parts"), [("llama", 1), ("llama", 3), ("mixtral", 1)])
def test_equal_layers_are_proved_once(family: str, parts: int) -> None:
    """No statement of the second layer is proved: its functions are found to be the first's."""
    reset()
    applied = Applied(sharded(family, 13, 4, "ring", parts=parts))
    steps = applied.run()
    assert all(s.verdict == "equal" for s in steps)
    assert any("model.layers.0" in s.text for s in steps)
    assert not any("model.layers.1" in s.text for s in steps)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"self\.up_proj\(", "self.gate_proj("),
        (r"aten\.mul\.Tensor\((\w+), \w+\)", r"aten.mul.Tensor(\1, \1)"),
        (r"aten\.silu\.", "aten.sigmoid."),
    ],
)
def test_a_second_layer_that_differs_is_not_taken_for_the_first(old: str, new: str) -> None:
    """Other weights, other operands, another op."""
    honest = sharded("llama", 13, 4, "ring")
    second = [s for s in honest.sources if s.module.startswith("model.layers.1.mlp")]
    texts = {s: re.sub(old, new, s.text) for s in second}
    assert sum(text != s.text for s, text in texts.items()) == 1
    told = [attrs.evolve(s, text=texts.get(s, s.text)) for s in honest.sources]
    found = prove_task(attrs.evolve(honest, sources=tuple(told)), hooks(), refute=False)
    assert found.verdict == "unknown"


def test_a_wrong_hint_proves_nothing_wrong() -> None:
    """Hints that call every tensor whole: the outputs are compared in any case."""
    honest = sharded("gpt2", 13, 4, "ring")
    found = prove_task(attrs.evolve(honest, hints={}), hooks(), refute=False)
    assert found.verdict == "unknown"


def test_a_table_of_rows_that_is_another_is_not_proved() -> None:
    own = hooks()

    def shifted(size: int, ranks: int, ring: int) -> list[list[tuple[int, int, int]]]:
        rows = [list(r) for r in own.runs(size, ranks, ring)]
        return [rows[-1], *rows[:-1]]

    found = prove_task(sharded("gpt2", 13, 4, "ring"), attrs.evolve(own, runs=shifted))
    assert found.verdict == "unknown"
    assert "row" in found.reason


class Tokenwise(nn.Module):
    """Two layers for each token after one attention, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = self.down(torch.tanh(self.up(mixed.transpose(1, 2).flatten(2))))
        return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())


def test_without_ranks_or_devices() -> None:
    batch = (torch.randn(2, 11, 8), torch.randint(5, (2, 11)))
    found = quire.prove_shard(Tokenwise(), batch, ranks=4, ways=["hybrid"], exact=True)
    assert found.verdict == "proved", found.reason
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    assert run.text.startswith("equal")


class Twice(nn.Module):
    """Attention, and two dropouts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.one, self.other = nn.Linear(8, 24), nn.Dropout(0.3), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.one(mixed) - 2 * self.other(mixed)


def _dropping(model: nn.Module | None = None) -> Task:
    model = (model or Twice()).train()
    program = from_exported(export_training(model, (torch.randn(2, 13, 8),), {}))
    plan = plan_shards(program, 4, topology_of(None, "cpu"))
    return task(program, plan, built(model, program, plan).functions, names_of(model, program))


def test_dropout_of_a_ranks_rows_is_proved_for_the_same_outcomes() -> None:
    honest = _dropping()
    assert all("ranks.drawn(" in s.text for s in honest.sources if s.module in ("one", "other"))
    found = prove_task(honest, hooks())
    assert found.verdict == "proved", found.reason
    assert "axiom:draws" in {c.id for c in found.claims}


def test_other_draws_are_not_taken_for_the_models() -> None:
    """One outcome in place of the other, numbers drawn twice, by other odds, or alike for other
    rows."""
    honest = _dropping()
    (root,) = [s for s in honest.sources if not s.module]
    one, other = re.findall(r"(\w+) = self\.(?:one|other)\(\w+\)", root.text)
    swapped = root.text.replace(f" {one} = ", " kept = ").replace(f" {other} = ", f" {one} = ")
    swapped = swapped.replace(" kept = ", f" {other} = ")
    again = re.sub(r"self\.other\(", "self.one(", root.text)
    drops = [s for s in honest.sources if s.module == "one"]
    rows = re.sub(r"ranks\.drawn\((\S+), GROUP, ", r"\1(", drops[0].text)
    odds = drops[0].text.replace("0.3", "0.4")
    assert len({root.text, swapped, again}) == len({drops[0].text, rows, odds}) == 3
    for old, text in ((root, swapped), (root, again), (drops[0], rows), (drops[0], odds)):
        told = [attrs.evolve(s, text=text) if s is old else s for s in honest.sources]
        found = prove_task(attrs.evolve(honest, sources=tuple(told)), hooks(), refute=False)
        assert found.verdict == "unknown", text


class Early(Twice):
    """A dropout of what all ranks hold, before attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.one(x)).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_what_all_ranks_hold_is_drawn_alike() -> None:
    honest = _dropping(Early())
    (drop,) = [s for s in honest.sources if s.module == "one"]
    assert prove_task(honest, hooks()).verdict == "proved"
    text = re.sub(r"(aten\.native_dropout\.default)\(", r"ranks.drawn(\1, GROUP, ", drop.text)
    assert text != drop.text
    told = [attrs.evolve(s, text=text) if s is drop else s for s in honest.sources]
    found = prove_task(attrs.evolve(honest, sources=tuple(told)), hooks(), refute=False)
    assert found.verdict == "unknown"


class Counting(nn.Module):
    """Attention, and the sum of the rows whose place is one of the sequence's: all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        inside = (torch.arange(x.shape[1]) < x.shape[1]).to(x.dtype)
        return (mixed * inside[:, None]).sum(1)


def test_a_place_in_the_model_says_nothing_of_padding() -> None:
    """Rows past the end hold the last row's place: they count unless they are filled."""
    model = Counting()
    program = from_exported(export_training(model, (torch.randn(2, 13, 8),), {}))
    plan = plan_shards(program, 4, topology_of(None, "cpu"))
    honest = task(program, plan, built(model, program, plan).functions, names_of(model, program))
    assert prove_task(honest, hooks()).verdict == "proved"
    (root,) = honest.sources if len(honest.sources) == 1 else honest.sources[-1:]
    text = re.sub(r"ranks\.fill_rows\((\w+), .*\)", r"\1", root.text)
    assert text != root.text
    told = [attrs.evolve(s, text=text) if s is root else s for s in honest.sources]
    found = prove_task(attrs.evolve(honest, sources=tuple(told)), hooks(), refute=False)
    assert found.verdict == "unknown"
