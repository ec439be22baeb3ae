"""python tools/agree.py [FAMILY …]: every obligation of whole models, asked of Z3 and of cvc5."""

from __future__ import annotations

import sys

import torch

from quire.verify.certificate import Certificate
from quire.verify.check import solve, versions
from quire.verify.prove import prove
from tools.mutate_run import honest

MODELS = ("gpt2", "esmfold", "unet2d-condition")


def disagreements(found: Certificate, seconds: float = 10.0) -> tuple[int, list[str]]:
    """How many texts there are, and those on which a solver does not say "unsat"."""
    texts = list(dict.fromkeys(c.smt2 for c in found.texts))
    bad = []
    for name in versions():
        answers = solve(texts, name, seconds=seconds)
        bad += [
            f"{name} says {a}:\n{t}" for t, a in zip(texts, answers, strict=True) if a != "unsat"
        ]
    return len(texts), bad


def main() -> None:
    torch.set_num_threads(1)
    wrong = 0
    for name in sys.argv[1:] or MODELS:
        given = next(honest(name))
        found = prove(given.program, given.source, captured=given.captured, witness=False)
        count, bad = disagreements(found)
        agreed = "Z3 and cvc5 agree" if not bad else f"{len(bad)} answers differ"
        print(f"{name:18} {found.verdict}, {count} texts: {agreed}", flush=True)
        print("\n".join(bad), end="")
        wrong += len(bad) + (found.verdict != "proved")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
