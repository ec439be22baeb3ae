"""Memory for weights that a kernel streams."""

import gc
import mmap

import pytest
import torch

from quire.runtime.pages import LARGE, allocate


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 3 * LARGE + 5])
def test_zeros_of_that_size_outlive_what_made_them(size):
    room = allocate(size)
    assert room.shape == (size,) and room.dtype == torch.uint8 and not room.any()
    part = room[-64:]
    part.fill_(7)
    del room
    gc.collect()
    others = [allocate(size) for _ in range(3)]
    assert (part == 7).all() and not any(o.any() for o in others)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no such advice")
def test_large_blocks_begin_on_a_large_page():
    for size in (LARGE, 3 * LARGE + 5):
        assert allocate(size).data_ptr() % LARGE == 0
