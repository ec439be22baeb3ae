"""What ranks that are seeded alike draw: another mask for each head, one for what all hold."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import quire
from quire.plan.layout import Layout
from quire.runtime import sharded_attention as sharded
from quire.runtime.collectives import gather_rows, my_rows
from quire.runtime.draws import apart
from quire.runtime.draws import drawn as draw
from tests.ranks import mesh

SIZE, HEADS, BATCH, ODDS = 33, 4, 2, 0.3


def _kept(seed: int, again: bool = False) -> dict[str, Tensor]:
    """Queries of 0 weigh all keys alike, values are the rows of 1: what comes out is the mask that
    attention drew, `[B, H, S, S]`."""
    here = mesh(2)
    group = here.get_group().group_name
    layout = Layout(SIZE, 2, 1)
    q = torch.zeros(BATCH, HEADS, layout.local, SIZE)
    eye = torch.eye(SIZE).expand(BATCH, HEADS, SIZE, SIZE)
    v = my_rows(eye, 2, 1, SIZE, 2, 1, group, 0.0).requires_grad_()

    def attend(v: Tensor) -> Tensor:
        sizes: dict[str, Any] = {"q_size": SIZE, "k_size": SIZE, "ranks": 2, "ring": 1}
        return sharded.ulysses(q, torch.zeros_like(q), v, dropout=ODDS, group=group, **sizes)

    torch.manual_seed(seed)
    out = checkpoint(attend, v, use_reentrant=False) if again else attend(v)
    assert isinstance(out, Tensor)
    after = torch.rand(4)
    out.sum().backward()
    assert v.grad is not None
    whole = [gather_rows(x, 2, 1, SIZE, 2, 1, group) for x in (out.detach(), v.grad)]
    return {"kept": SIZE * (1 - ODDS) * whole[0], "back": whole[1], "after": after}


@pytest.fixture(scope="module")
def drawn(ranks: Any) -> list[dict[str, Tensor]]:
    return ranks.run(_kept, seed=5)


def test_heads_of_all_ranks_have_masks_of_their_own(drawn: list[dict[str, Tensor]]) -> None:
    kept = drawn[0]["kept"].round()
    torch.testing.assert_close(drawn[0]["kept"], kept)
    assert kept.unique().tolist() == [0, 1]
    masks = [m.flatten() for m in kept.flatten(0, 1)]
    # Those of two heads agree by chance, four standard deviations at most from it.
    agree = ODDS**2 + (1 - ODDS) ** 2
    for a, b in itertools.combinations(masks, 2):
        assert abs((a == b).double().mean() - agree) < 4 * (agree * (1 - agree) / a.numel()) ** 0.5
    dropped = (kept == 0).double().mean()
    assert abs(dropped - ODDS) < 4 * (ODDS * (1 - ODDS) / kept.numel()) ** 0.5


def test_backward_takes_the_mask_of_forward(drawn: list[dict[str, Tensor]]) -> None:
    """What a key's value adds to the sum is how often it was kept."""
    for answer in drawn:
        times = answer["kept"].sum(2) / (SIZE * (1 - ODDS))
        torch.testing.assert_close(answer["back"], times[..., None].expand_as(answer["back"]))


def test_the_seed_decides_and_generators_stay_alike(
    ranks: Any, drawn: list[dict[str, Tensor]]
) -> None:
    for answer, first in zip(ranks.run(_kept, seed=5), drawn, strict=True):
        torch.testing.assert_close(answer, first, rtol=0, atol=0)
        torch.testing.assert_close(answer["after"], drawn[0]["after"], rtol=0, atol=0)
    assert (ranks.run(_kept, seed=6)[0]["kept"] != drawn[0]["kept"]).any()


def test_what_is_computed_again_draws_the_same(ranks: Any, drawn: list[dict[str, Tensor]]) -> None:
    for answer in ranks.run(_kept, seed=5, again=True):
        torch.testing.assert_close(answer, drawn[0], rtol=0, atol=0)


def _rows() -> tuple[Tensor, Tensor]:
    group = mesh(2).get_group().group_name
    torch.manual_seed(3)
    x = torch.ones(64, 64, requires_grad=True)
    out, _ = draw(torch.ops.aten.native_dropout.default, group, x, ODDS, True)
    out.sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def test_rows_of_all_ranks_have_masks_of_their_own(ranks: Any) -> None:
    (one, back), (other, _), *_ = ranks.run(_rows)
    assert torch.equal(one, back)
    agree = ODDS**2 + (1 - ODDS) ** 2
    assert abs((one == other).double().mean() - agree) < 4 * (agree * (1 - agree) / 4096) ** 0.5
    for mask in (one, other):
        dropped = (mask == 0).double().mean()
        assert abs(dropped - ODDS) < 4 * (ODDS * (1 - ODDS) / 4096) ** 0.5


def _after_an_error() -> tuple[Tensor, Tensor]:
    group = mesh(2).get_group().group_name
    torch.manual_seed(1)
    with apart(group, torch.device("cpu")):
        pass
    want = torch.rand(2)
    torch.manual_seed(1)
    with pytest.raises(KeyError), apart(group, torch.device("cpu")):
        torch.rand(7)
        raise KeyError
    return want, torch.rand(2)


def test_the_users_generator_comes_back_whatever_happens(ranks: Any) -> None:
    for want, got in ranks.run(_after_an_error):
        assert torch.equal(want, got)


class Layer(nn.Module):
    def __init__(self, odds: float = ODDS) -> None:
        super().__init__()
        self.odds, self.qkv, self.drop = odds, nn.Linear(8, 24), nn.Dropout(odds)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, dropout_p=self.odds)
        return x + self.drop(mixed.transpose(1, 2).flatten(2))


class Dropping(nn.Module):
    """Dropout within attention and after it, in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean(), x


def _steps(how: str) -> tuple[Tensor, ...] | None:
    """Loss and gradients of one step: layers kept, or made again in backward, or compiled."""
    here = mesh(2)
    if dist.get_rank() >= 2:  # two are enough
        return None
    torch.manual_seed(0)
    x = torch.randn(2, 13, 8)
    small: Any = quire.shard(Dropping().train(), (x,), mesh=here, outputs="whole", verify=False)
    if how == "recompute":
        small._quire.keeps[0] = dict.fromkeys(("layers.0", "layers.1"), "recompute")
    call = torch.compile(small, backend="aot_eager") if how == "compile" else small
    torch.manual_seed(2)
    loss, out = call(x)
    loss.backward()
    return loss.detach(), out.detach(), *(p.grad for p in small.parameters())


class Early(nn.Module):
    """A dropout of what all ranks hold, before attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = Layer(0.0), nn.Dropout(ODDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.drop(x)).square().mean()


def _early(sharded: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, model = torch.randn(2, 13, 8), Early()
    step: Any = quire.shard(model, (x,), mesh=mesh(2), verify=False) if sharded else model
    torch.manual_seed(2)
    loss = step(x)
    loss.backward()
    return loss.detach(), *(p.grad for p in step.parameters())


def test_what_all_ranks_hold_is_drawn_as_one_process_draws_it(ranks: Any) -> None:
    for got in ranks.run(_early, sharded=True):
        torch.testing.assert_close(got, _early(False), rtol=1e-5, atol=1e-6)


def test_a_step_is_the_same_on_all_ranks_and_made_again(ranks: Any) -> None:
    want = ranks.run(_steps, how="keep")
    torch.testing.assert_close(want[1], want[0], rtol=0, atol=0)
    for got in ranks.run(_steps, how="recompute")[:2]:
        torch.testing.assert_close(got, want[0], rtol=1e-6, atol=1e-7)


def test_a_compiled_step_drops_too(ranks: Any) -> None:
    want = ranks.run(_steps, how="keep")[0]
    for got in ranks.run(_steps, how="compile")[:2]:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def _still() -> tuple[list[bool], list[bool], bool] | None:
    """Which layers drop while the second one's dropout is in evaluation, and after that."""
    here = mesh(2)
    if dist.get_rank() >= 2:
        return None
    model, x = Dropping(), torch.randn(2, 13, 8)
    model.layers[1].get_submodule("drop").eval()
    small: Any = quire.shard(model, (x,), mesh=here, verify=False)

    def dropping() -> list[bool]:
        return ["ranks.drawn(" in small.source(f"layers.{k}.drop") for k in range(2)]

    before = dropping()
    small.layers[1].drop.train()
    small(x)
    return before, dropping(), model.layers[1].get_submodule("drop").training


def test_each_module_is_captured_in_its_own_mode(ranks: Any) -> None:
    """And the user's model is left in the mode it was in."""
    for answer in ranks.run(_still)[:2]:
        assert answer == ([True, False], [True, True], False)
