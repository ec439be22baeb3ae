"""SMT-LIB texts solved in processes that can be ended, with bounded time and memory."""

from __future__ import annotations

import multiprocessing as mp
import resource
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import cvc5
import z3

VERSIONS = {"z3": z3.get_version_string(), "cvc5": cvc5.__version__}
MEMORY = 4 << 30


def versions() -> dict[str, str]:
    return dict(VERSIONS)


def solve(texts: Sequence[str], solver: str, *, seconds: float = 10.0) -> list[str]:
    """ "unsat", "sat" or "unknown (why)" for each text.

    One process per run of texts; one that overruns its time is ended and the rest go to a new one.
    """
    answers: list[str] = []
    context = mp.get_context("spawn")
    while len(answers) < len(texts):
        ours, theirs = context.Pipe()
        rest = list(texts[len(answers) :])
        worker = context.Process(target=_work, args=(theirs, solver, rest, seconds), daemon=True)
        worker.start()
        theirs.close()
        answers += _answers(ours, len(rest), seconds)
        worker.kill()
        worker.join()
    return answers


def _answers(pipe: Connection, count: int, seconds: float) -> list[str]:
    """Answers until one is late: that one is unknown."""
    found: list[str] = []
    limit = seconds * 2 + 60  # the first waits for the process to start
    while len(found) < count:
        if not pipe.poll(limit):
            return [*found, f"unknown (no answer in {seconds:g} s)"]
        try:
            found.append(pipe.recv())
        except EOFError:
            return [*found, "unknown (the solver's process ended, perhaps out of memory)"]
        limit = seconds * 2 + 1
    return found


def _work(pipe: Connection, solver: str, texts: list[str], seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ask = {"z3": ask_z3, "cvc5": ask_cvc5}[solver]
    for text in texts:
        pipe.send(ask(text, seconds))


def ask_z3(text: str, seconds: float) -> str:
    s = z3.Solver()
    s.set("timeout", int(seconds * 1000))
    s.from_string(text.replace("(check-sat)", ""))
    answer = str(s.check())
    return f"unknown ({s.reason_unknown()})" if answer == "unknown" else answer


def ask_cvc5(text: str, seconds: float) -> str:
    manager: Any = cvc5.TermManager()
    s = cvc5.Solver(manager)
    s.setOption("tlimit-per", str(int(seconds * 1000)))
    parser = cvc5.InputParser(s)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "claim")
    symbols = parser.getSymbolManager()
    answer = "unknown (no check-sat)"
    while True:
        command = parser.nextCommand()
        if command.isNull():
            break
        said = str(command.invoke(s, symbols)).strip()
        if said:
            answer = said
    return answer if answer in ("sat", "unsat") else f"unknown ({answer})"


def timed(texts: Sequence[str], solver: str, *, seconds: float = 10.0) -> tuple[list[str], float]:
    start = time.perf_counter()
    return solve(texts, solver, seconds=seconds), time.perf_counter() - start
