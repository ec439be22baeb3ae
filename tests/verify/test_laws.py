"""Laws: both solvers discharge every lemma; the document lists them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.verify.check import solve
from quire.verify.laws import LEMMAS, render

TRUSTED = Path(__file__).parents[2] / "docs" / "trusted.md"


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_lemmas_hold(solver: str) -> None:
    texts = [text for law in LEMMAS for text in law.obligations]
    assert solve(texts, solver) == ["unsat"] * len(texts)


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_a_false_lemma_is_noticed(solver: str) -> None:
    (text,) = [o for law in LEMMAS if law.name == "online-step" for o in law.obligations]
    forgotten = text.replace("(* l r)", "l")
    assert forgotten != text
    assert solve([forgotten], solver, seconds=3)[0] != "unsat"


def test_the_document_lists_them() -> None:
    text = TRUSTED.read_text(encoding="utf-8")
    assert text.partition("<!-- laws -->\n")[2].partition("\n<!-- /laws -->")[0] == render()
