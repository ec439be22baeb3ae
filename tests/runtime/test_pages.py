"""Memory for weights that a kernel streams."""

import gc
import mmap
import warnings

import pytest
import torch

from quire.runtime import pages
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


BYTES = bytes(range(256))


def file_of(path, shared):
    path.write_bytes(BYTES * (4 * LARGE // 256))
    held = torch.from_file(str(path), shared=shared, size=4 * LARGE, dtype=torch.uint8)
    assert not large_kib(held)
    return held


@needs_large_pages
@pytest.mark.parametrize("at_once", [LARGE, 64 * LARGE])
def test_private_memory_of_a_file_moves_to_large_pages(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(pages, "_AT_ONCE", at_once)
    held = file_of(tmp_path / "weights", shared=False)
    held[LARGE] = 9
    want, place = held.clone(), held.data_ptr()
    enlarge([held[5:], held])
    assert large_kib(held) >= 3 * LARGE // 1024
    assert held.data_ptr() == place and torch.equal(held, want)
    held[2 * LARGE] = 7
    assert (tmp_path / "weights").read_bytes() == BYTES * (4 * LARGE // 256)


@needs_large_pages
def test_what_cannot_be_written_stays_so(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(BYTES * (4 * LARGE // 256))
    with path.open("rb") as file:
        room = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    with warnings.catch_warnings(action="ignore"):  # that it is not writable
        held = torch.frombuffer(room, dtype=torch.uint8)
    enlarge([held])
    assert large_kib(held) >= 3 * LARGE // 1024
    assert bytes(held[2 * LARGE :].numpy()) == BYTES * (2 * LARGE // 256)
    (mode,) = [
        m for low, high, m, _ in pages._mappings() if low <= held.data_ptr() + 2 * LARGE < high
    ]
    assert mode == "r--p"


def test_memory_that_is_shared_stays_as_it_is(tmp_path):
    held = file_of(tmp_path / "weights", shared=True)
    enlarge([held])
    held[LARGE + 1] = 9
    assert (tmp_path / "weights").read_bytes()[LARGE + 1] == 9


@needs_large_pages
def test_only_what_is_read_moves(tmp_path):
    held = file_of(tmp_path / "weights", shared=False)
    enlarge([held[: 2 * LARGE].view(2, LARGE).T, held[:0]])
    assert large_kib(held) <= 2 * LARGE // 1024
    assert large_kib(held[: 2 * LARGE]) >= LARGE // 1024


@needs_large_pages
@pytest.mark.parametrize("refused", ["mmap", "madvise", "mremap"])
def test_weights_stay_where_the_system_refuses(tmp_path, monkeypatch, refused):
    class Refuses:
        mmap, munmap = pages._libc().mmap, pages._libc().munmap
        madvise, mprotect = pages._libc().madvise, pages._libc().mprotect
        mremap = pages._libc().mremap

    answer = -1 if refused == "madvise" else pages._FAILED
    monkeypatch.setattr(Refuses, refused, lambda *_: answer)
    monkeypatch.setattr(pages, "_libc", lambda: Refuses)
    held = [file_of(tmp_path / "weights", shared=False), torch.arange(4 * LARGE)]
    want = [t.clone() for t in held]
    enlarge(held)
    assert all(torch.equal(a, b) for a, b in zip(held, want, strict=True))
    assert refused == "madvise" or not large_kib(held[0])


@needs_large_pages
@pytest.mark.parametrize("most, taken, moves", [(15, 0, False), (100, 85, False), (17, 0, True)])
def test_files_stay_where_they_would_take_most_memory(tmp_path, monkeypatch, most, taken, moves):
    held = file_of(tmp_path / "weights", shared=False)
    (tmp_path / "memory.max").write_text(f"{most * LARGE // 2}\n")
    (tmp_path / "memory.current").write_text(f"{taken * LARGE // 2}\n")
    monkeypatch.setattr(pages, "_GROUP", tmp_path)
    enlarge([held])
    assert bool(large_kib(held)) == moves


def test_what_is_available_is_the_systems_where_no_group_limits_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_GROUP", tmp_path)
    whole = pages._available()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4096\n")
    assert whole > LARGE and pages._available() > whole // 2
