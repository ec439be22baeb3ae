"""`accelerate launch` starts ranks as torchrun does: the Trainer example under it, on two CPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_trainer_example_under_accelerate_launch() -> None:
    """`--multi_gpu` names the launcher that starts one process a device; without GPUs these are CPU
    ranks. The loss falls, and what is saved is read by the model's own class."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "29631", "examples/train_with_trainer.py", "--seq", "64",
        "--steps", "3",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = set(re.findall(r"losses ([\d. ]+)", done.stdout))
    losses = [float(x) for x in line.split()]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert "saved: a LlamaForCausalLM" in done.stdout
