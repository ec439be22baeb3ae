"""Memory as the prover sees it: what may be a copy, and what was written since."""

import pytest
import torch

from quire.verify import views
from quire.verify.memory import Tensor, fresh
from quire.verify.poly import index
from quire.verify.value import NotShown, cut


def held(copies: bool) -> tuple[Tensor, Tensor]:
    """A tensor [4, 6], and its first two rows as a vector that torch may have copied."""
    base = fresh(cut("z", (4, 6), torch.float32))
    rows = base.seen(views.narrow(base.sizes, 0, 0, 2))
    return base, rows.seen(views.reshape(rows.sizes, (12,)), copies=copies)


def put(base: Tensor, first: int) -> None:
    two = base.seen(views.narrow(base.sizes, 0, first, 2))
    two.write(cut("new", (2, 6), torch.float32))


def test_what_may_be_a_copy_is_not_read_after_its_rows_were_written() -> None:
    base, flat = held(copies=True)
    put(base, 1)
    with pytest.raises(NotShown, match=r"read after a write that a copy would not see"):
        flat.value()


def test_what_may_be_a_copy_is_read_after_other_rows_were_written() -> None:
    base, flat = held(copies=True)
    before = flat.value().scalar
    put(base, 2)
    assert flat.value().scalar is before


def test_a_view_sees_what_was_written() -> None:
    base, flat = held(copies=False)
    put(base, 0)
    new = cut("new", (2, 6), torch.float32)
    k = index(0, flat.sizes[0])
    rows, columns = views.reshape(new.shape, (12,)).forward([k])
    assert flat.value().at([k]) is new.at([rows, columns])
