"""Memory for weights that a kernel streams."""

import gc
import mmap

import pytest
import torch

from quire.runtime.pages import LARGE, allocate, tensors


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


def test_tensors_of_one_block_do_not_overlap():
    shapes = [(3, 5), (2, 0), (7,), (1, 1, 33)]
    made = tensors(shapes, torch.bfloat16)
    for k, tensor in enumerate(made):
        assert tensor.shape == shapes[k] and tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0 or tensor.numel() == 0
        tensor.fill_(k + 1)
    assert all((tensor == k + 1).all() for k, tensor in enumerate(made))
