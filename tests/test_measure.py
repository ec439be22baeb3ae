"""Readings of memory against allocations of known size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quire.measure import allocated, environment, prepared

MIB = 1 << 20
NOISE = 128 << 10


def on_one_processor() -> None:
    """Linux counts resident pages on each processor, and adds them up 32 pages late: 128 KiB for
    each that the process ran on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_rise_of_the_resident_set_is_the_bytes_allocated() -> None:
    """In a heap with holes, which must neither hide a tensor nor keep one."""
    script = Path(__file__).parent / "known_allocations.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        preexec_fn=on_one_processor,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    readings = json.loads(done.stdout)
    assert readings.pop("prepared")
    expected = {
        "nothing": 0,
        "one after the other": 8 * MIB,
        "all at once": 68 * MIB,
        "temporary and result": 7 * MIB,
        "small": 4 * MIB,
    }
    assert readings == {name: pytest.approx(size, abs=NOISE) for name, size in expected.items()}


def test_a_process_without_the_settings_is_not_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert not prepared()
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert prepared()


def test_allocated_counts_to_the_byte() -> None:
    def call() -> torch.Tensor:
        first = torch.empty(1000)
        second = torch.empty(300, dtype=torch.float64)
        del first
        return second

    torch.empty(1)
    peak, result = allocated(call)
    assert peak == 1000 * 4 + 300 * 8
    assert result.shape == (300,)
