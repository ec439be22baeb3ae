"""The machine's figures: sane, kept in a file, measured again when that is of no use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
import torch

from quire.cost import machine as module
from quire.cost.machine import BUSY_LASTS, REFERENCE, Machine, cache_file, machine, measure_machine
from quire.cost.rates import ATTENTION_ROWS, GEMM_ROWS, interpolated


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices measured; figures come from REFERENCE."""
    measured: list[str] = []

    def measure(device: str, threads: int) -> Machine:
        measured.append(device)
        return attrs.evolve(REFERENCE, threads=threads, busy=device == "cpu" and threads == 3)

    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "measure_machine", measure)
    module._machine.cache_clear()
    return measured


def test_measured_figures_are_sane() -> None:
    before = torch.get_num_threads()
    found = measure_machine("cpu", 1, seconds=0.2)
    assert torch.get_num_threads() == before
    numbers = [v for v in attrs.astuple(found) if isinstance(v, float)]
    assert all(n >= 0 for n in numbers)
    assert found.read_bandwidth >= found.copy_bandwidth / 2 > 1e7
    assert found.cache_bandwidth >= found.copy_bandwidth
    assert len(found.gemm_float32) == len(GEMM_ROWS)
    assert len(found.attention_bfloat16) == len(ATTENTION_ROWS)
    assert found.gemm_float32[-1] > 1e8
    assert 1e-8 < found.dispatch_seconds < 1e-2


def test_measured_once(counted: list[str]) -> None:
    first = machine("cpu", threads=2)
    module._machine.cache_clear()
    assert machine("cpu", threads=2) == first
    assert counted == ["cpu"]
    assert machine("cpu", threads=1).threads == 1
    assert counted == ["cpu", "cpu"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "{}"])
def test_a_broken_file_is_measured_anew(counted: list[str], text: str) -> None:
    path = cache_file("cpu", 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert machine("cpu", threads=2) == REFERENCE
    assert counted == ["cpu"]
    assert json.loads(path.read_text())["name"] == "reference"


def test_figures_of_a_busy_machine_age(counted: list[str]) -> None:
    machine("cpu", threads=3)
    module._machine.cache_clear()
    machine("cpu", threads=3)
    assert len(counted) == 1
    old = cache_file("cpu", 3).stat().st_mtime - BUSY_LASTS - 1
    os.utime(cache_file("cpu", 3), (old, old))
    module._machine.cache_clear()
    machine("cpu", threads=3)
    assert len(counted) == 2


def test_no_place_to_keep_figures(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "file" / "below"))
    assert machine("cpu", threads=2) == REFERENCE


def test_interpolation() -> None:
    rows, figures = (1, 16, 64), (1e9, 4e9, 8e9)
    assert interpolated(0, rows, figures) == interpolated(1, rows, figures) == 1e9
    assert interpolated(1000, rows, figures) == 8e9
    assert interpolated(16, rows, figures) == pytest.approx(4e9)
    assert interpolated(4, rows, figures) == pytest.approx(2e9)


def test_table_has_units() -> None:
    table = dict(REFERENCE.table())
    assert table["fresh page"] == "1.50 µs per 4 KiB"
    assert table["gemm float32, 1024 rows"] == "180 GFLOP/s"
    busy = dict(attrs.evolve(REFERENCE, busy=True).table())
    assert "other programs" in busy["device"]
