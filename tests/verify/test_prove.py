"""Proofs of applied programs: honest ones are proved, lies are not, files are checked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.verify.certificate import Certificate, load, verify
from quire.verify.claims import CertificateError
from quire.verify.prove import prove


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(torch.tanh(x))))


def chunked(model: nn.Module, args: tuple[Any, ...], shapes: Any = None) -> tuple[Program, str]:
    exported = export(model.eval(), args, None, shapes)
    plan, program = Planning(from_exported(exported)).plan("min")
    assert plan.regions
    return program, apply_chunks(program, plan).text


@pytest.fixture(scope="module")
def block() -> tuple[Program, str]:
    length = torch.export.Dim("S", min=2, max=4096)
    return chunked(Block(), (torch.randn(2, 37, 8),), ({1: length},))


@pytest.fixture(scope="module")
def proved(block: tuple[Program, str]) -> Certificate:
    return prove(*block)


def test_every_length_and_part_size(proved: Certificate) -> None:
    assert proved.verdict == "proved", proved.reason
    assert proved.sizes and proved.sizes[0][1:] == (2, 4096)
    assert {c.kind for c in proved.claims} >= {"law", "integer", "equality"}


def test_convolutions_with_halos() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, stride=2, padding=1)
    )
    found = prove(*chunked(model, (torch.randn(1, 3, 41, 8),)))
    assert found.verdict == "proved", found.reason


LIES: list[Callable[[str], str]] = [
    lambda s: s.replace("b = min(a + step, size)", "b = a + step"),
    lambda s: s.replace("range(0, size, step)", "range(step, size, step)"),
    lambda s: s.replace("range(0, size, step)", "range(0, size, max(step - 1, 1))"),
    lambda s: s.replace("narrow(1, a,", "narrow(1, 0,", 1),
    lambda s: s.replace("kernels.gelu", "kernels.silu"),
    lambda s: s.replace("torch.add(", "torch.sub("),
    lambda s: s.replace("(x0_0, w0, w1", "(x0_0, w0, w3"),
]


@pytest.mark.parametrize("lie", range(len(LIES)))
def test_lies_are_not_proved(block: tuple[Program, str], lie: int) -> None:
    program, source = block
    told = LIES[lie](source)
    assert told != source
    assert prove(program, told).verdict != "proved"


def test_a_refutation_runs(block: tuple[Program, str], tmp_path: Path) -> None:
    program, source = block
    found = prove(program, source.replace("torch.add(", "torch.sub("))
    assert found.verdict == "refuted"
    script = tmp_path / "witness.py"
    script.write_text(found.claims[-1].rule)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "AssertionError" in done.stderr, done.stderr


def test_both_solvers_agree(proved: Certificate, tmp_path: Path) -> None:
    path = proved.save(tmp_path / "block.cert")
    again = verify(path, "both")
    assert again.verdict == "proved" and set(again.solvers) == {"z3", "cvc5"}
    assert load(path) == proved


@pytest.mark.parametrize("part", ["program", "source", "smt2", "plan", "verdict"])
def test_one_byte_changed_is_rejected(proved: Certificate, tmp_path: Path, part: str) -> None:
    path = proved.save(tmp_path / "block.cert")
    text = path.read_text()
    at = text.index(f'"{part}": "') + len(part) + 6
    changed = chr(ord(text[at]) ^ 1) if part != "plan" else "x"
    path.write_text(text[:at] + changed + text[at + (part != "plan") :])
    with pytest.raises(CertificateError):
        verify(path)


def test_a_claim_that_does_not_hold_is_not_proved(proved: Certificate, tmp_path: Path) -> None:
    import attrs  # noqa: PLC0415

    claims = list(proved.claims)
    k = next(i for i, c in enumerate(claims) if c.kind == "integer")
    false = "(set-logic QF_LIA)\n(declare-const x Int)\n(assert (> x 0))\n(check-sat)\n"
    claims[k] = attrs.evolve(claims[k], smt2=false)
    path = attrs.evolve(proved, claims=tuple(claims)).save(tmp_path / "false.cert")
    assert verify(path).verdict == "unknown"
