"""Decode steps from the captured graph against the model itself, token by token.

The measure is float64: what the kernel may differ by is what the model's own float arithmetic
does. In float32 the two take their sums in different orders, so twice the model's own largest
error is allowed; in bfloat16 the kernel rounds the cache, and in large batches what products are
taken of, and must be at least as close.
"""

import pytest
import torch

from tests.kernel.decode import decode, exact_logits, kernel_of, planned
from tests.kernel.models import CONFIGS

TOKENS = 32
STARTS = torch.tensor([0, 3, 1])


def errors(model, got, ids):
    want = exact_logits(model, ids)
    with torch.no_grad():
        own = model(ids, use_cache=False).logits
    return (got.double() - want).abs().max().item(), (own.double() - want).abs().max().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_are_as_exact_as_eager(name):
    model, step, kernel = kernel_of(name)
    torch.manual_seed(1)
    ids = torch.randint(320, (3, TOKENS))
    got = decode(step, kernel, ids, STARTS)
    ours, eager = errors(model, got, ids)
    assert ours <= 2 * eager + 2**-22 * got.abs().max().item()
    assert torch.equal(got, decode(step, kernel, ids, STARTS))
    plan = kernel.plan
    assert plan.arena.size <= 1.1 * plan.arena.bound


@pytest.mark.parametrize("scheme", ["", "lossless"])
@pytest.mark.parametrize("rows", [2, 12])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_bfloat16_logits_are_closer_than_eager(name, rows, scheme):
    model, step, kernel = kernel_of(name, torch.bfloat16, scheme)
    assert bool(kernel.packed_bytes) == bool(scheme)
    torch.manual_seed(1)
    ids = torch.randint(320, (rows, TOKENS))
    got = decode(step, kernel, ids, torch.arange(rows) * 3 % 4)
    if name != "mixtral":
        ours, eager = errors(model, got, ids)
        assert ours <= eager
    else:
        # A rounded router may choose other experts: look at the typical error.
        want = exact_logits(model, ids)
        with torch.no_grad():
            own = model(ids, use_cache=False).logits
        assert (got - want).abs().median() <= (own.double() - want).abs().median()


def test_window_reads_no_more_than_it_should():
    """A token outside the windows, and one before the row's start, change nothing."""
    _, step, kernel = kernel_of("mistral")
    torch.manual_seed(2)
    ids = torch.randint(320, (1, 26))
    other = ids.clone()
    other[0, :10] = (other[0, :10] + 1) % 320
    a, b = (decode(step, kernel, x, torch.tensor([0])) for x in (ids, other))
    # Window 7 in each of two layers: slot 22 sees 10 … 22.
    assert not torch.equal(a[:, 21], b[:, 21])
    assert torch.equal(a[:, 22:], b[:, 22:])


def test_depth_is_data():
    """Source and phase functions do not grow with depth."""
    deep = planned("llama", num_hidden_layers=4)
    for layers, plan in ((2, planned("llama")), (4, deep)):
        assert plan.rendered.repeats == (layers,)
        assert len(plan.phases) == 5 * layers + 2
        assert plan.source == deep.source
