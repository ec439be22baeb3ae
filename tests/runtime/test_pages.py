"""Memory for weights that a kernel streams."""

import gc
import mmap

import pytest
import torch

from quire.runtime.pages import LARGE, allocate, enlarge, tensors
from tests.large_pages import large_kib, needs_large_pages


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


@needs_large_pages
def test_weights_move_to_large_pages_where_they_lie():
    gathered = [torch.arange(300_000, dtype=torch.float32) + k for k in range(12)]
    held = [torch.randn(2 * LARGE), *gathered, torch.empty(0), torch.arange(5)]
    views = [*held, held[0][7:9]]
    before = [t.clone() for t in held]
    places = [t.data_ptr() for t in held]
    was = large_kib(held[0])
    enlarge(views)
    assert large_kib(held[0]) - was >= 3 * LARGE // 1024
    assert [t.data_ptr() for t in held] == places
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


def test_memory_of_a_file_stays_as_it_is(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (3 * LARGE // 256))
    held = torch.from_file(str(path), shared=True, size=3 * LARGE, dtype=torch.uint8)
    enlarge([held])
    assert bytes(held.numpy()[:512]) == bytes(range(256)) * 2
    held[0] = 9
    assert path.read_bytes()[0] == 9
