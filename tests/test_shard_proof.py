"""Certificates as users of `quire.shard` meet them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import nn

import quire
from quire.shard_proof import certified, hooks
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Source
from tests.ranks import mesh
from tests.shard_models import build
from tests.verify.shard.cases import sharded


def _shard(family: str, size: int, other: int) -> list[tuple[str, str]]:
    """The certificate of the example's length, and that of another, which is captured anew."""
    model, batch = build(family, size)
    small: Any = quire.shard(model, batch, mesh=mesh(4))
    found = [(small.certificate.verdict, small.certificate.about)]
    small(**build(family, other)[1]).loss.backward()
    return [*found, (small.certificate.verdict, small.certificate.about)]


def test_every_rank_holds_a_certificate_of_every_length(ranks: Any) -> None:
    for answers in ranks.run(_shard, family="gpt2", size=13, other=11):
        assert [verdict for verdict, _ in answers] == ["proved", "proved"], answers
        assert "outputs and gradients equal on every rank" in answers[0][1]


class Dropping(nn.Module):
    """Attention that drops, and a dropout after it."""

    def __init__(self, within: float, after: float) -> None:
        super().__init__()
        self.within, self.qkv, self.drop = within, nn.Linear(8, 24), nn.Dropout(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.within)
        return self.drop(mixed.transpose(1, 2).flatten(2))


def test_what_is_unknown_is_said() -> None:
    """It is handed out with its reason, unless that is not wanted."""
    batch = (torch.randn(2, 13, 8),)
    assert quire.prove_shard(Dropping(0.0, 0.1).train(), batch, ranks=4).verdict == "proved"
    found = quire.prove_shard(Dropping(0.1, 0.0).train(), batch, ranks=4)
    assert found.verdict == "unknown"
    assert "what is dropped is drawn" in found.reason
    assert certified(found, allow_unknown=True) is found
    with pytest.raises(quire.UnprovedError) as raised:
        certified(found, allow_unknown=False)
    assert raised.value.certificate is found


def test_a_wrong_program_is_never_handed_out() -> None:
    """Labels shifted after the cut: the proof fails, and the run differs."""
    honest = sharded("llama", 13, 4, "ring")
    root = honest.sources[-1]
    assert "view_11_part = ranks.my_rows(view_11, 0, 2, 13, " in root.text
    lines = []
    for line in root.text.splitlines():
        if "aten.pad.default(labels" in line:
            order = root.text.partition("ranks.my_rows(view_11, 0, 2, ")[2].partition(")")[0]
            lines.append(f"    labels = ranks.my_rows(labels, 1, 1, {order})")
        if "view_11_part = " in line:
            line = "    view_11_part = view_11"
        lines.append(line.replace("del view_11\n", ""))
    text = "\n".join(line for line in lines if line.strip() != "del view_11") + "\n"
    told = attrs.evolve(
        honest, sources=(*honest.sources[:-1], Source(root.module, root.call, text))
    )
    found = prove_task(told, hooks())
    assert found.verdict == "refuted", found.reason
    with pytest.raises(quire.RefutedError) as raised:
        certified(found, allow_unknown=True)
    assert "output 0 of rank 0 differs" in str(raised.value)


def test_outputs_and_losses() -> None:
    model, batch = build("gpt2", 11)
    whole = quire.prove_shard(model, batch, ranks=4, outputs="whole")
    assert whole.verdict == "proved", whole.reason
    assert not any("rows of dim" in c.text for c in whole.claims if c.text.startswith("output"))
    loss = quire.prove_shard(model, batch, ranks=4, outputs="loss", reduce_gradients=False)
    assert loss.verdict == "proved", loss.reason
    assert any("as DDP and FSDP2 do" in c.text for c in loss.claims)


class Pooled(torch.nn.Module):
    """Means and sums over the sequence, and a row of it: joined over ranks outside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).flatten(2)
        return self.out(y.mean(1) + y.sum(1) + y[:, 3]).square().mean()


@pytest.mark.parametrize("size", [12, 13])
def test_sums_and_means_over_the_sequence(size: int) -> None:
    found = quire.prove_shard(
        Pooled(), (torch.randn(2, size, 8),), ranks=4, ways=["ring"], exact=True
    )
    assert found.verdict == "proved", found.reason
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    assert run.text.startswith("equal"), run.text


class Teaching(Dropping):
    """A loss against what the model says itself, kept still."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said = super().forward(x)
        return (said - 2 * said.detach()).square().mean()


def test_what_the_model_keeps_still_is_kept_still() -> None:
    """The outputs are shown; what gradients go past a detach is not, and that is said."""
    found = quire.prove_shard(Teaching(0.0, 0.0), (torch.randn(2, 13, 8),), ranks=4)
    assert found.verdict == "unknown" and "detach stops gradients" in found.reason
    (output,) = [c for c in found.claims if c.text.startswith("output")]
    assert output.verdict == "proved"


def test_a_range_of_lengths_without_ranks() -> None:
    """Of a model captured here: its length is the size that the attention's sequence has."""
    model, batch = Pooled(), (torch.randn(2, 13, 8),)
    found = quire.prove_shard(model, batch, ranks=4, ways=["gathered"], lengths=(57, 1 << 17))
    assert found.verdict == "proved", found.reason
    assert "in 57 … 131072" in found.about
    exact = quire.prove_shard(model, batch, ranks=2, ways=["ulysses"], lengths=(13, 40), exact=True)
    (run,) = [c for c in exact.claims if c.kind == "exact run"]
    assert exact.verdict == "proved" and run.text.startswith("equal"), exact.reason


def test_a_range_that_begins_too_early_is_told_where_to_begin() -> None:
    batch = (torch.randn(2, 13, 8),)
    with pytest.raises(quire.InputError) as raised:
        quire.prove_shard(Pooled(), batch, ranks=4, ways=["gathered"], lengths=(9, 40))
    assert "each of 4 ranks has rows" in str(raised.value)
    with pytest.raises(quire.InputError):
        quire.prove_shard(Pooled(), batch, ranks=4, lengths=(40, 20))
    with pytest.raises(quire.InputError) as raised:
        quire.prove_shard(Fixed(), (torch.randn(2, 3),), ranks=4, lengths=(20, 40))
    assert "as long as an attention's sequence" in str(raised.value)


class Fixed(nn.Module):
    """Attention over a sequence of the model's own length."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(1, 2, 7, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.own * x.sum()
        return nn.functional.scaled_dot_product_attention(own, own, own).sum()
