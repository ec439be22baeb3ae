"""Write docs/coverage.md: every model family, exported, chunked, equal, reduction reached.

The work is in `benchmarks/coverage.py`; this runs it from any folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    command = [sys.executable, "-m", "benchmarks.coverage", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
