"""Rows sorted by a key and put back: what comes out of it, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify import term as t
from quire.verify.interpret import tensor
from quire.verify.meaning import MEANING
from quire.verify.meaning.contraction import contract
from quire.verify.poly import index, poly, variable
from quire.verify.same import same
from quire.verify.term.core import RANGES, flat
from quire.verify.value import Value, cut

GROUPS, WIDTH = 3, 2
some = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def ranges() -> Iterator[None]:
    """Keys are groups: that is known of them, as of what topk gives."""
    RANGES["keys"] = (0, GROUPS - 1)
    yield
    RANGES.clear()


def means(name: str, *args: Any, **kwargs: Any) -> Any:
    return MEANING[name](*args, **kwargs)


def routed(rows: int, *, down: bool = False, back: bool = True, high: int = GROUPS - 1) -> Value:
    """Rows sorted by key, times the matrix of their group, and put back."""
    keys = cut("keys", [rows], torch.int64)
    x = cut("x", [rows, 2], torch.float32)
    weight = cut("weight", [GROUPS, 2, WIDTH], torch.float32)
    values, order = means("sort", keys, descending=down)
    counted = means("histc", means("_to_copy", values, dtype=torch.float32), GROUPS, 0, high)
    ends = means("cumsum", counted, 0, dtype=torch.int32)
    made = means("_grouped_mm", means("index", x, [order]), weight, ends)
    places = means("empty_like", order)
    places = means("index_put", places, [order], means("arange", rows))
    return means("index", made, [places if back else order])


def plain(rows: int) -> Value:
    """The same, row by row."""
    keys = cut("keys", [rows], torch.int64)
    x = cut("x", [rows, 2], torch.float32)
    weight = cut("weight", [GROUPS, 2, WIDTH], torch.float32)
    return contract("mk,mkn->mn", x, means("index", weight, [keys]))


def ops(x: Any) -> set[str]:
    """The ops in a term, those that its integers are read by among them."""
    found: set[str] = set()
    stack = [x]
    while stack:
        y = stack.pop()
        if isinstance(y, t.Term):
            found.add(y.op)
            stack += flat(y.args)
        else:
            stack += [a for atom in y.free for a in atom.args]
    return found


@pytest.mark.parametrize("rows", [2, 5, 52])
def test_sorting_by_group_and_back_is_each_row_times_the_matrix_of_its_key(rows: int) -> None:
    made = routed(rows)
    assert "row" not in ops(made.scalar)
    assert same(made.scalar, plain(rows).scalar)


def test_other_routes_are_not_that() -> None:
    want = plain(5).scalar
    assert not same(routed(5, back=False).scalar, want)
    assert not same(routed(5, high=GROUPS).scalar, want)
    del RANGES["keys"]
    assert not same(routed(5).scalar, want)  # a key might be no group


def test_the_way_back_of_a_falling_order_is_one_but_its_groups_are_not_the_keys() -> None:
    keys = cut("keys", [5], torch.int64)
    order = means("argsort", keys, descending=True)
    places = means("index_put", means("empty_like", order), [order], means("arange", 5))
    there = means("index", keys, [order])
    assert same(means("index", there, [places]).scalar, keys.scalar)
    assert same(means("index", places, [order]).scalar, means("arange", 5).scalar)
    assert not same(means("index", there, [order]).scalar, keys.scalar)


@some
@given(st.lists(st.integers(0, GROUPS - 1), min_size=2, max_size=6))
def test_against_torch(found: list[int]) -> None:
    rows, keys = len(found), torch.tensor(found)
    x, weight = torch.rand(rows, 2), torch.rand(GROUPS, 2, WIDTH)
    values, order = keys.sort(stable=True)
    counted = torch.histc(values.float(), GROUPS, 0, GROUPS - 1)
    places = torch.empty_like(order)
    places[order] = torch.arange(rows)
    given_ = {"keys": keys, "x": x.double(), "weight": weight.double()}
    named = cut("keys", [rows], torch.int64)
    own, by = means("sort", named)
    torch.testing.assert_close(tensor(own, given_), values)
    torch.testing.assert_close(tensor(by, given_), order)
    count = means("histc", means("_to_copy", own, dtype=torch.float32), GROUPS, 0, GROUPS - 1)
    torch.testing.assert_close(tensor(count, given_), counted.double())
    put = means("index_put", means("empty_like", by), [by], means("arange", rows))
    torch.testing.assert_close(tensor(put, given_), places)
    want = torch.stack([x[n].double() @ weight[keys[n]].double() for n in range(rows)])
    torch.testing.assert_close(tensor(routed(rows), given_), want)


def test_a_sum_over_an_order_is_the_sum_and_that_of_some_of_it_is_not() -> None:
    keys = cut("keys", [5], torch.int64)
    x = cut("x", [5], torch.float32)
    moved = means("index", x, [means("argsort", keys)])
    assert same(means("sum", moved).scalar, means("sum", x).scalar)
    first, own = (Value((poly(4),), v.dtype, v.at([index(0, poly(4))])) for v in (moved, x))
    assert not same(means("sum", first).scalar, means("sum", own).scalar)


def test_an_extreme_within_a_sum_keeps_its_own_order() -> None:
    """Σ_j max_k f(π_k(j), k): each k has an order of its own, and the sum is not reordered."""
    keys = cut("keys", [4, 3], torch.int64)
    x = cut("x", [4], torch.float32)
    by = means("argsort", keys, 0)
    largest = means("amax", means("index", x, [by]), [1])
    want = means("sum", x)
    assert not same(means("sum", largest).scalar, want.scalar)


def test_index_put_by_other_than_an_order_is_known_by_name_only() -> None:
    keys = cut("keys", [5], torch.int64)
    put = means("index_put", means("empty_like", keys), [keys], means("arange", 5))
    assert "fn" in ops(put.scalar)
    order = means("argsort", keys)
    added = means("index_put", means("empty_like", keys), [order], means("arange", 5), True)
    assert "fn" in ops(added.scalar)
    longer = means("index_put", cut("y", [6], torch.int64), [order], means("arange", 5))
    assert "fn" in ops(longer.scalar)


def test_the_first_of_topk_is_not_the_second() -> None:
    """The place asked for is replaced in a row's function as in any other term."""
    values, indices = means("topk", cut("y", [4, 5], torch.float32), 2)
    row = variable("r", [0], [3])
    at = index(0, poly(4))
    for found in (values, indices):
        assert not same(found.at([at, poly(0)]), found.at([at, poly(1)]))
        assert not same(found.at([row, poly(0)]), found.at([row, poly(1)]))
