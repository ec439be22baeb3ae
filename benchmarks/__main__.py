"""Run every measurement of `docs/benchmarks.md`, then render it: `make bench`. Takes hours."""

from __future__ import annotations

import shlex
import subprocess
import sys

from benchmarks import report
from benchmarks.measure import ROOT


def main() -> None:
    failed = []
    for section in report.SECTIONS:
        for command in section.commands:
            print(f"python -m {command}", flush=True)
            line = [sys.executable, "-m", *shlex.split(command)]
            if subprocess.run(line, cwd=ROOT, check=False).returncode:
                failed.append(command)
    report.main()
    for command in failed:
        print(f"failed: python -m {command}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
