"""Quantised weights: the kernel equals the graph with the dequantised weights."""

import copy

import pytest
import torch

from quire.runtime.pack import dequantised
from tests.kernel.decode import decode, exact_logits, kernel_of


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
def test_equals_the_dequantised_graph(name, scheme):
    # A lookup reads the weights unquantised: not tied.
    original, step, kernel = kernel_of(name, scheme=scheme, tie_word_embeddings=False)
    model = copy.deepcopy(original)
    buffers = {b.target: b for row in kernel.plan.rendered.slots for b in row if b.scheme}
    assert len(buffers) >= 3 * 2
    torch.manual_seed(1)
    ids = torch.randint(320, (2, 24))
    got = decode(step, kernel, ids, torch.tensor([0, 2]))
    before = exact_logits(model, ids)
    state = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for target, buffer in buffers.items():
            weight = state[target.removeprefix("model.")]
            weight.copy_(dequantised(weight.detach(), buffer))
    want = exact_logits(model, ids)
    assert (before - want).abs().max() > 1e-3
    with torch.no_grad():
        own = model(ids, use_cache=False).logits
    eager = (own.double() - want).abs().max().item()
    ours = (got.double() - want).abs().max().item()
    assert ours <= 2 * eager + 2**-22 * got.abs().max().item()


def test_copied_weights_lie_in_one_block_in_the_order_they_are_read():
    _, _, kernel = kernel_of("llama", scheme="int8", tie_word_embeddings=False)
    order = [b for row in kernel.plan.rendered.slots for b in row if b.role == "state"]
    copied = {b.target: kernel.weight(b) for b in order if b.scheme or b.order}
    ends = 0
    for weight in copied.values():
        assert ends <= weight.data_ptr() < ends + 64 or not ends
        ends = weight.data_ptr() + weight.numel() * weight.element_size()
    assert kernel.packed_bytes == sum(w.numel() * w.element_size() for w in copied.values())
