"""Worker processes that handle many small cases each, and report one line of JSON a case."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.measure import MARK, ROOT

Item = dict[str, Any]


def serve(text: str, attempt: Callable[[Item], Item]) -> None:
    """In the worker: handle the items given as JSON. An exception fails its item and no other."""
    torch.set_num_threads(2)
    for item in json.loads(text):
        try:
            answer = attempt(item)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer = {"outcome": "error", "error": f"{type(error).__name__}: {first}"}
        print(MARK + json.dumps(item | answer), flush=True)
        gc.collect()


def answers(
    module: str, items: list[Item], each: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[Item]:
    """Send `items` to fresh processes of `module --worker`, `each` at a time; yield what they say.

    `environment` is theirs (default: this process's own). A process that dies fails the item it was
    at; the next one takes up the rest.
    """
    waiting = list(items)
    while waiting:
        batch, waiting = waiting[:each], waiting[each:]
        command = [sys.executable, "-W", "ignore", "-m", module, "--worker", json.dumps(batch)]
        answered = 0
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            for line in process.stdout or ():
                if line.startswith(MARK):
                    answered += 1
                    yield json.loads(line.removeprefix(MARK))
        if answered < len(batch):
            error = f"the worker process died, exit {process.returncode}"
            yield batch[answered] | {"outcome": "error", "error": error}
            waiting = batch[answered + 1 :] + waiting
