"""The second engine: programs run in a finite field, compared without tolerance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.verify import field
from quire.verify.exact import exact_run
from quire.verify.prove import prove


class Attention(nn.Module):
    """Causal attention with two heads, a norm and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, s, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 2
        seen = torch.ones(s, s, dtype=torch.bool).tril()
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, s, 8))
        return x + self.down(nn.functional.gelu(self.up(x)))


def chunked(model: nn.Module, x: Tensor) -> tuple[Program, str]:
    plan, program = Planning(from_exported(export(model.eval(), (x,), None, None))).plan("min")
    assert plan.regions
    return program, apply_chunks(program, plan).text


@pytest.fixture(scope="module")
def attention() -> tuple[Program, str]:
    return chunked(Attention(), torch.randn(1, 23, 8))


elements = st.lists(st.integers(0, field.P - 1), min_size=1, max_size=5)


def packed(values: list[int]) -> Tensor:
    p = torch.tensor(values, dtype=torch.float64)
    return field.pack(p, torch.remainder(p * 3 + 1, field.Q))


def residues(x: Tensor) -> list[tuple[int, int]]:
    p, q = field.unpack(x)
    return [(int(a), int(b)) for a, b in zip(p, q, strict=True)]


def test_the_primes() -> None:
    assert field.P == 2 * field.Q + 1
    for m in (field.P, field.Q):
        assert all(m % d for d in range(2, int(m**0.5) + 1))
    assert pow(field.G, field.Q, field.P) == 1 != field.G


@settings(deadline=None, max_examples=8, derandomize=True)
@given(elements, st.integers(1, field.P - 1))
def test_arithmetic_is_the_fields(values: list[int], other: int) -> None:
    x, y = packed(values), packed([other] * len(values))
    for (xp, xq), (yp, yq), (sp, sq), (mp, mq), (ip, _) in zip(
        *map(residues, (x, y, field.add(x, y), field.multiply(x, y), field.inverse(y))),
        strict=True,
    ):
        assert (sp, sq) == ((xp + yp) % field.P, (xq + yq) % field.Q)
        assert (mp, mq) == (xp * yp % field.P, xq * yq % field.Q)
        assert ip * yp % field.P == 1


@settings(deadline=None, max_examples=10, derandomize=True)
@given(elements)
def test_exp_of_a_sum_is_a_product(values: list[int]) -> None:
    x, y = packed(values), packed(values[::-1])
    left = field.unpack(field.exp(field.add(x, y)))[0]
    right = field.unpack(field.multiply(field.exp(x), field.exp(y)))[0]
    assert torch.equal(left, right)


def test_honest_programs_agree_without_tolerance(attention: tuple[Program, str]) -> None:
    found = exact_run(*attention)
    assert found.equal is True, found.reason
    assert found.runs == 2 and found.chance < 1e-8


def test_a_certificate_states_the_chance(attention: tuple[Program, str]) -> None:
    found = prove(*attention, exact=True)
    assert found.verdict == "proved", found.reason
    (claim,) = [c for c in found.claims if c.kind == "exact run"]
    assert "chance ≤" in claim.text


def test_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, stride=2, padding=1)
    )
    found = exact_run(*chunked(model, torch.randn(1, 3, 21, 8)))
    assert found.equal is True, found.reason


LIES = [
    ("b = min(a + step, size)", "b = min(a + step, size - 1)"),
    ("is_causal=a", "is_causal=a + 1"),
    ("kernels.gelu(", "kernels.silu("),
]


@pytest.mark.parametrize(("honest", "lie"), LIES)
def test_lies_differ(attention: tuple[Program, str], honest: str, lie: str) -> None:
    program, source = attention
    told = source.replace(honest, lie)
    assert told != source
    assert exact_run(program, told).equal is False
