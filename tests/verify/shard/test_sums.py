"""Sums over ranks, and rows cut and brought together, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify import term as t
from quire.verify.compare import differ
from quire.verify.interpret import tensor
from quire.verify.prove import reset
from quire.verify.shard.hooks import Ranks
from quire.verify.shard.order import Mesh, Order, Place
from quire.verify.shard.tensor import Local
from quire.verify.value import NotShown, build, cut

MESHES = st.sampled_from([(2, 1), (2, 2), (3, 1), (4, 1), (4, 2), (4, 4), (8, 4)])
some = settings(max_examples=15, deadline=None, derandomize=True)


def ranks_of(mesh: tuple[int, int]) -> Ranks:
    reset()
    return Ranks(Mesh(mesh[0]))


@some
@given(st.integers(1, 12), MESHES, st.integers(1, 3))
def test_rows_summed_on_each_rank_add_up(size: int, mesh: tuple[int, int], outer: int) -> None:
    """Σ_r Σ_i x² of rows, padding 0, is Σ x²; so is the count of rows."""
    ranks = ranks_of(mesh)
    x = torch.randn(outer * size, dtype=torch.float64)
    rows = ranks.my_rows(
        Local(cut("x", [outer * size], x.dtype)), 0, outer, size, *mesh, "GROUP", 0.0
    )
    total = ranks.sum_ranks((rows * rows).sum(), "GROUP").value
    torch.testing.assert_close(tensor(total, {"x": x}), x.square().sum())


@some
@given(st.integers(1, 12), MESHES)
def test_padding_that_counts_is_no_sum(size: int, mesh: tuple[int, int]) -> None:
    ranks = ranks_of(mesh)
    rows = ranks.my_rows(Local(cut("x", [size], torch.float64)), 0, 1, size, *mesh, "GROUP", 1.0)
    if Order(size, *mesh).padded == size:
        ranks.sum_ranks(rows.sum(), "GROUP")
    else:
        with pytest.raises(NotShown):
            ranks.sum_ranks(rows.sum(), "GROUP")


@some
@given(st.integers(1, 12), MESHES, st.integers(1, 3), st.booleans())
def test_the_largest_of_the_ranks_largest(
    size: int, mesh: tuple[int, int], outer: int, largest: bool
) -> None:
    ranks = ranks_of(mesh)
    x = torch.randn(2, outer * size, dtype=torch.float64)
    fill = -float("inf") if largest else float("inf")
    whole = Local(cut("x", [2, outer * size], x.dtype))
    rows = ranks.my_rows(whole, 1, outer, size, *mesh, "GROUP", fill)
    own = rows.amax([1]) if largest else rows.amin([1])
    found = ranks.max_ranks(own, "GROUP", largest).value
    torch.testing.assert_close(tensor(found, {"x": x}), x.amax(1) if largest else x.amin(1))


@pytest.mark.parametrize("fill", [0.0, None, float("inf")])
def test_padding_that_may_be_the_largest_is_no_maximum(fill: float | None) -> None:
    ranks = ranks_of((4, 2))
    rows = ranks.my_rows(Local(cut("x", [13], torch.float64)), 0, 1, 13, 4, 2, "GROUP", fill)
    with pytest.raises(NotShown):
        ranks.max_ranks(rows.amax([0]), "GROUP")
    with pytest.raises(NotShown):
        ranks.max_ranks(rows.sum(), "GROUP")


def test_an_extreme_of_what_all_ranks_hold_is_that() -> None:
    ranks = ranks_of((4, 1))
    x = cut("x", [3], torch.float64)
    assert differ(ranks.max_ranks(Local(x), "GROUP").value, x) == ""


@some
@given(st.integers(1, 12), MESHES, st.integers(1, 3))
def test_rows_brought_together_are_the_whole(size: int, mesh: tuple[int, int], outer: int) -> None:
    ranks = ranks_of(mesh)
    whole = cut("x", [2, outer * size, 3], torch.float64)
    rows = ranks.my_rows(Local(whole), 1, outer, size, *mesh, "GROUP", 0.0)
    back = ranks.gather_rows(rows, 1, outer, size, *mesh, "GROUP")
    assert differ(back.value, whole) == ""


def test_what_all_ranks_hold_is_taken_p_times() -> None:
    ranks = ranks_of((4, 1))
    x = torch.randn(3, dtype=torch.float64)
    total = ranks.sum_ranks(Local(cut("x", [3], x.dtype)), "GROUP").value
    torch.testing.assert_close(tensor(total, {"x": x}), 4 * x)


def test_products_of_ranks_shares_are_no_sum() -> None:
    ranks = ranks_of((4, 1))
    rows = ranks.my_rows(Local(cut("x", [8], torch.float64)), 0, 1, 8, 4, 1, "GROUP", 0.0)
    with pytest.raises(NotShown):
        ranks.sum_ranks(rows.sum() * rows.sum(), "GROUP")


def test_rows_told_by_the_rank_are_not_brought_together() -> None:
    ranks = ranks_of((4, 1))
    mine = Local(build([2], torch.float64, lambda idx: t.of_int(ranks.mesh.rank + idx[0])))
    with pytest.raises(NotShown):
        ranks.gather_rows(mine, 0, 1, 8, 4, 1, "GROUP")


def test_another_mesh_is_refused() -> None:
    ranks = ranks_of((4, 1))
    x = Local(cut("x", [8], torch.float64))
    with pytest.raises(NotShown):
        ranks.my_rows(x, 0, 1, 8, 2, 1, "GROUP", 0.0)
    with pytest.raises(NotShown):
        ranks.sum_ranks(x, "another group")


def test_padding_rows_hold_the_last_row() -> None:
    """As the runtime's docstring says: not what another tensor's padding holds."""
    ranks = ranks_of((4, 1))
    x = cut("x", [13], torch.float64)
    held = Local(ranks.mesh.seen(Place(0, Order(13, 4)), x))
    again = ranks.my_rows(
        ranks.gather_rows(held, 0, 1, 13, 4, 1, "GROUP"), 0, 1, 13, 4, 1, "GROUP", None
    )
    assert differ(ranks.gather_rows(again, 0, 1, 13, 4, 1, "GROUP").value, x) == ""
    with pytest.raises(NotShown):
        ranks.sum_ranks(held.sub(again).sum(), "GROUP")
