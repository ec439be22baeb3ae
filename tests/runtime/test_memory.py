"""The promise measured: the resident set in a fresh process rises by no more than the plan says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quire.measure import environment

BUDGETS = ("min", None)

NOISE = 1 << 20
"""Pages that small blocks share and that libraries touch; tensors are counted to the byte by the
tests of tests/apply."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_measured_peak_is_within_the_plans() -> None:
    script = Path(__file__).parent / "measure_peak.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(json.dumps, BUDGETS)],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *rows, (baseline, predicted) = json.loads(done.stdout)
    for measured, planned in rows:
        assert measured <= planned + NOISE
        assert measured > planned * 0.9
    assert 0.9 * predicted <= baseline <= predicted + NOISE
    assert max(planned for _, planned in rows) < predicted
