"""SMT-LIB texts solved in processes that can be ended, with bounded time and memory."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cvc5
import z3

from quire.verify import worker

VERSIONS = {"z3": z3.get_version_string(), "cvc5": cvc5.__version__}

Process = subprocess.Popen[bytes]


def versions() -> dict[str, str]:
    return dict(VERSIONS)


def solve(
    texts: Sequence[str], solver: str, *, seconds: float = 10.0, processes: int = 2
) -> list[str]:
    """ "unsat", "sat" or "unknown (why)" for each text; equal texts are asked once.

    A process that overruns its time is ended, and the texts after that one go to a new one.
    """
    distinct = list(dict.fromkeys(texts))
    runs = [distinct[k::processes] for k in range(processes) if distinct[k::processes]]
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda run: _solve(run, solver, seconds), runs)
        answers = {t: a for run, given in zip(runs, found, strict=True)
                   for t, a in zip(run, given, strict=True)}  # fmt: skip
    return [answers[t] for t in texts]


def _solve(texts: Sequence[str], solver: str, seconds: float) -> list[str]:
    answers: list[str] = []
    while len(answers) < len(texts):
        with _started(solver, seconds) as process:
            answers += _answers(process, texts[len(answers) :], seconds)
    return answers


@contextmanager
def _started(solver: str, seconds: float) -> Iterator[Process]:
    command = [sys.executable, "-P", worker.__file__, solver, str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _answers(process: Process, texts: Sequence[str], seconds: float) -> list[str]:
    """Answers until one is late: that one is unknown."""
    found: list[str] = []
    assert process.stdin is not None and process.stdout is not None
    limit = seconds * 2 + 60  # the first waits for the process to start
    for text in texts:
        try:
            process.stdin.write(json.dumps(text).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return [*found, "unknown (the solver's process ended)"]
        if not select.select([process.stdout], [], [], limit)[0]:
            return [*found, f"unknown (no answer in {seconds:g} s)"]
        line = process.stdout.readline()
        if not line:
            return [*found, "unknown (the solver's process ended, perhaps out of memory)"]
        found.append(json.loads(line))
        limit = seconds * 2 + 1
    return found
