"""A solver's process: one JSON text a line in, one answer a line out.

    python -P worker.py z3|cvc5 SECONDS

Run by path, so that it needs nothing of Quire's and starts at once.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import cvc5
import z3

MEMORY = 4 << 30
"""Bytes of address space that a solver may take."""


def ask_z3(text: str, seconds: float) -> str:
    """ "sat", "unsat", or "unknown (why)"."""
    s = z3.Solver()
    s.set("timeout", int(seconds * 1000))
    s.from_string(text.replace("(check-sat)", ""))
    answer = str(s.check())
    return f"unknown ({s.reason_unknown()})" if answer == "unknown" else answer


def ask_cvc5(text: str, seconds: float) -> str:
    """ "sat", "unsat", or "unknown (why)"."""
    manager: Any = cvc5.TermManager()
    s = cvc5.Solver(manager)
    s.setOption("tlimit-per", str(int(seconds * 1000)))
    parser = cvc5.InputParser(s)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "claim")
    symbols = parser.getSymbolManager()
    answer = "unknown (no check-sat)"
    while not (command := parser.nextCommand()).isNull():
        said = str(command.invoke(s, symbols)).strip()
        if said:
            answer = said
    return answer if answer in ("sat", "unsat") else f"unknown ({answer})"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ask = {"z3": ask_z3, "cvc5": ask_cvc5}[sys.argv[1]]
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line), float(sys.argv[2]))), flush=True)


if __name__ == "__main__":
    main()
