"""Decode steps from the captured graph against the model itself, token by token.

The measure is float64: what the kernel may differ by is what the model's own float arithmetic
does. In float32 the two take their sums in different orders, so twice the model's own largest
error is allowed; in bfloat16 the kernel rounds only the cache and must be at least as close.
"""

import pytest
import torch

from quire.capture.decode import capture_decode
from quire.kernel.compile import compile_program
from tests.kernel.decode import decode, exact_logits, kernel_of
from tests.kernel.models import CONFIGS, causal_lm

TOKENS = 32
STARTS = torch.tensor([0, 3, 1])


def errors(model, got, ids):
    want = exact_logits(model, ids)
    with torch.no_grad():
        own = model(ids, use_cache=False).logits
    return (got.double() - want).abs().max().item(), (own.double() - want).abs().max().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_are_as_exact_as_eager(name):
    model = causal_lm(name)
    step, kernel = kernel_of(model)
    torch.manual_seed(1)
    ids = torch.randint(320, (3, TOKENS))
    got = decode(step, kernel, ids, STARTS)
    ours, eager = errors(model, got, ids)
    assert ours <= 2 * eager + 2**-22 * got.abs().max().item()
    assert torch.equal(got, decode(step, kernel, ids, STARTS))
    plan = kernel.plan
    assert plan.arena.size <= 1.1 * plan.arena.bound


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_bfloat16_logits_are_closer_than_eager(name):
    model = causal_lm(name, torch.bfloat16)
    step, kernel = kernel_of(model)
    torch.manual_seed(1)
    ids = torch.randint(320, (2, TOKENS))
    got = decode(step, kernel, ids, STARTS[:2])
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
    """A token outside the window, and one before the row's start, change nothing."""
    model = causal_lm("mistral")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    step, kernel = kernel_of(model)
    torch.manual_seed(2)
    ids = torch.randint(320, (1, 20))
    other = ids.clone()
    other[0, :10] = (other[0, :10] + 1) % 320
    a, b = (decode(step, kernel, x, torch.tensor([0])) for x in (ids, other))
    assert not torch.equal(a[:, 9:16], b[:, 9:16])
    assert torch.equal(a[:, 16:], b[:, 16:])  # window 7: slot 16 sees 10 … 16


def test_depth_is_data():
    """Source and phase functions do not grow with depth."""
    sources = []
    for layers in (3, 6):
        model = causal_lm("llama", num_hidden_layers=layers)
        step = capture_decode(model, 48, 4)
        plan = compile_program(step.program, "", "t", {s.name: 4 for s in step.program.symbols})
        sources.append(plan.source)
        assert plan.rendered.repeats == (layers,)
        assert len(plan.phases) == 5 * layers + 2
    assert sources[0] == sources[1]
