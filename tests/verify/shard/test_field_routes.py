"""A mixture of experts on field elements."""

from __future__ import annotations

import pytest
import torch

from quire.verify import field
from quire.verify.field_ops import Unsupported
from quire.verify.shard.field_routes import histogram, products, products_backward, running_sum, top


def test_equal_rows_choose_alike() -> None:
    row = field.encoded(torch.tensor([3, 7, 7, 5]))
    values, at = top(torch.stack([row, row]), 2)
    assert at.tolist() == [[1, 2], [1, 2]]
    assert torch.equal(values[0], row[at[0]])


def test_a_mask_is_chosen_last() -> None:
    row = torch.cat(
        [torch.full((1,), -torch.inf, dtype=torch.float64), field.encoded(torch.zeros(2))]
    )
    assert top(row, 2)[1].tolist() == [1, 2]


def test_counts_are_those_of_plain_numbers() -> None:
    keys = field.encoded(torch.tensor([0, 0, 1, 3]))
    found = histogram(keys, 4, max=3)
    assert torch.equal(found, field.encoded(torch.tensor([2, 1, 0, 1])))
    assert running_sum(found, 0, torch.int32).tolist() == [2, 3, 3, 4]


def test_what_is_no_number_is_not_counted() -> None:
    half = field.encoded(torch.tensor([0.5]))
    with pytest.raises(Unsupported):
        histogram(half, 4, max=3)
    with pytest.raises(Unsupported):
        running_sum(half, 0, torch.int32)
    with pytest.raises(Unsupported):
        running_sum(field.encoded(torch.tensor([1])), 0, None)


def test_rows_in_groups_are_those_of_plain_numbers() -> None:
    """An expert without rows among them."""
    x, weight = torch.randint(9, (5, 2)), torch.randint(9, (3, 2, 4))
    grad, offs = torch.randint(9, (5, 4)), torch.tensor([2, 2, 5])
    own = weight[torch.tensor([0, 0, 2, 2, 2])]
    found = products(field.encoded(x), field.encoded(weight), offs)
    assert torch.equal(found, field.encoded((x[:, None] @ own)[:, 0]))
    by_x, by_weight = products_backward(
        field.encoded(x), field.encoded(weight), offs, field.encoded(grad)
    )
    assert torch.equal(by_x, field.encoded((grad[:, None] @ own.mT)[:, 0]))
    want = torch.stack([x[:2].T @ grad[:2], torch.zeros(2, 4).long(), x[2:].T @ grad[2:]])
    assert torch.equal(by_weight, field.encoded(want))
