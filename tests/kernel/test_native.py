"""The bound kernel: deterministic, and sound with threads, forks and neighbours."""

import concurrent.futures
import ctypes
import gc
import multiprocessing
import shutil
import threading
import time

import attrs
import pytest
import torch

import quire
from quire.errors import InputError, QuireError
from quire.runtime import build
from quire.runtime.native import NativeKernel
from tests.kernel.decode import BATCH, decode, kernel_of
from tests.large_pages import large_kib, needs_large_pages

IDS = torch.arange(60).reshape(3, 20) * 5 % 320
STARTS = torch.tensor([0, 3, 1])


@pytest.fixture(scope="module")
def made():
    return kernel_of("llama", torch.bfloat16)[1:]


def test_bit_identical_for_any_number_of_threads(made):
    step, kernel = made
    want = decode(step, kernel, IDS, STARTS)
    for threads in (1, 3):
        other = NativeKernel(kernel.plan, threads=threads)
        assert torch.equal(decode(step, other, IDS, STARTS), want)


def test_a_row_does_not_depend_on_its_neighbours(made):
    step, kernel = made
    together = decode(step, kernel, IDS, STARTS)
    alike = decode(step, kernel, IDS[[1, 1, 1]], STARTS[[1, 1, 1]])
    assert torch.equal(alike, together[[1, 1, 1]])


def test_two_kernels_in_one_process(made):
    step, kernel = made
    other = NativeKernel(kernel.plan, threads=2)
    want = decode(step, kernel, IDS, STARTS)
    first, second = (decode(step, k, IDS, STARTS) for k in (kernel, other))
    assert torch.equal(first, want) and torch.equal(second, want)


def _in_child(step, kernel, queue):
    queue.put(decode(step, kernel, IDS, STARTS).sum().item())


def test_a_fork_runs_with_threads_of_its_own(made):
    step, kernel = made
    want = decode(step, kernel, IDS, STARTS).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(step, kernel, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == want


def test_a_fork_waits_for_no_thread_of_its_parent(made):
    step, kernel = made
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    held, done = threading.Event(), threading.Event()

    def hold():
        with kernel.turn:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = context.Process(target=_in_child, args=(step, kernel, queue))
    child.start()
    child.join(30)
    done.set()
    thread.join()
    child.kill()
    assert child.exitcode == 0


SLEEPER = """
    if (q.share(0, 1, 2, 2, 1).lo == 1) std::this_thread::sleep_for(std::chrono::seconds(1));
"""


def _hang_and_drop_all(step, plan):
    """A kernel whose second worker sleeps past the watchdog, in its phase of cache writes; then
    everything that it works on is dropped, and it wakes up."""
    ctypes.CDLL(None).mallopt(-3, 1024)  # M_MMAP_THRESHOLD: memory that is freed is gone at once
    source = plan.source.replace("phase_1(q);", "{" + SLEEPER + "} phase_1(q);")
    assert source != plan.source
    plan = attrs.evolve(plan, rendered=attrs.evolve(plan.rendered, source=source))
    slow = NativeKernel(plan, threads=2, watchdog=0.2)
    with pytest.raises(QuireError, match="worker 1: phase 1, working"):
        decode(step, slow, IDS, STARTS)
    del slow
    gc.collect()
    time.sleep(2)


def test_a_worker_that_wakes_up_after_the_watchdog_finds_its_memory(made):
    step, kernel = made
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_hang_and_drop_all, args=(step, kernel.plan))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_calls_from_several_threads_take_turns(made):
    step, kernel = made
    want = [decode(step, kernel, IDS[b : b + 1], STARTS[b : b + 1]) for b in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(decode, step, kernel, IDS[b : b + 1], STARTS[b : b + 1])
            for b in (0, 1, 2, 0, 1, 2)
        ]
        for b, run in enumerate(runs):
            assert torch.equal(run.result(), want[b % 3])


def test_compiled_once(made):
    _, kernel = made
    again = NativeKernel(kernel.plan, threads=1)
    assert again.path == kernel.path


def test_weights_are_read_in_place(made):
    _, kernel = made
    assert kernel.packed_bytes == 0


@needs_large_pages
def test_weights_move_to_large_pages():
    model = torch.nn.Linear(2048, 2048)
    x = torch.randn(2, 2048)
    want, was = model(x), large_kib(model.weight)
    fast = quire.fuse(torch.export.export(model, (x,)), verify=False)
    assert large_kib(model.weight) - was >= 6 * 1024
    torch.testing.assert_close(fast(x), want)


def test_too_many_rows_are_refused(made):
    step, kernel = made
    more = BATCH + 1
    with pytest.raises(InputError, match=f"size {more}"):
        decode(step, kernel, IDS[:1].expand(more, -1), torch.zeros(more, dtype=torch.long))


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(QuireError, match=r"apt install g\+\+"):
        build.library("int main() {}")
