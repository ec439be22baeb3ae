"""Weights in blocks: the kernel equals the graph with what they stand for."""

import copy

import pytest
import torch
from torch import nn

import quire
from quire.errors import QuireError
from quire.runtime.native import NativeKernel
from quire.runtime.pack import dequantised
from tests.kernel.decode import decode, exact_logits, kernel_of
from tests.kernel.models import causal_lm


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name, rows", [("llama", 2), ("gpt2", 2), ("qwen3-moe", 2), ("llama", 8)])
def test_equals_the_dequantised_graph(name, rows, scheme):
    # A lookup reads the weights unquantised: not tied.
    original, step, kernel = kernel_of(name, scheme=scheme, tie_word_embeddings=False)
    model = copy.deepcopy(original)
    buffers = {b.target: b for row in kernel.plan.rendered.slots for b in row if b.scheme}
    assert len(buffers) >= 3 * 2
    torch.manual_seed(1)
    ids = torch.randint(320, (rows, 24))
    got = decode(step, kernel, ids, torch.tensor([0, 2]).repeat(rows // 2))
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


@pytest.mark.parametrize("scheme", ["int8", "int4", "lossless"])
def test_a_batch_has_the_same_bits_in_any_order_and_for_any_number_of_threads(scheme):
    dtype = torch.bfloat16 if scheme == "lossless" else torch.float32
    _, step, kernel = kernel_of("llama", dtype, scheme, tie_word_embeddings=False)
    torch.manual_seed(1)
    ids, starts = torch.randint(320, (8, 6)), torch.zeros(8, dtype=torch.long)
    want = decode(step, kernel, ids, starts)
    for threads in (1, 3):
        other = NativeKernel(kernel.plan, threads=threads)
        assert torch.equal(decode(step, other, ids, starts), want)
    order = torch.randperm(8)
    assert torch.equal(decode(step, kernel, ids[order], starts), want[order])
    few = decode(step, kernel, ids[:4], starts[:4])  # too few for tiles
    assert torch.equal(decode(step, kernel, ids[:3], starts[:3]), few[:3])


def test_copied_weights_lie_in_one_block_in_the_order_they_are_read():
    _, _, kernel = kernel_of("llama", scheme="int8", tie_word_embeddings=False)
    order = [b for row in kernel.plan.rendered.slots for b in row if b.role == "state"]
    copied = {b.target: kernel.weight(b) for b in order if b.scheme or b.order}
    ends = 0
    for weight in copied.values():
        assert ends <= weight.data_ptr() < ends + 64 or not ends
        ends = weight.data_ptr() + weight.numel() * weight.element_size()
    assert kernel.packed_bytes == sum(w.numel() * w.element_size() for w in copied.values())


def test_a_scheme_there_is_not_and_one_for_other_weights():
    model = causal_lm("llama")
    with pytest.raises(QuireError, match=r"int3(.|\n)*None, 'int8', 'int4', 'lossless'"):
        quire.fuse(model, weights="int3")
    with pytest.raises(
        QuireError, match=r"torch\.float32(.|\n)*bf16 weights(.|\n)*dtype='bfloat16'"
    ):
        quire.fuse(model, weights="lossless")
    one = nn.Linear(64, 64)
    with pytest.raises(QuireError, match="lossless"):
        quire.fuse(one, (torch.zeros(4, 64),), weights="lossless")


def test_weights_of_another_dtype_stay_as_they_are():
    """A model of both: what is not bf16 is read where it lies."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 96, bias=False).bfloat16()
            self.b = nn.Linear(96, 64, bias=False)

        def forward(self, x):
            return self.b(self.a(x).float())

    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(4, 64).bfloat16()
    fast = quire.fuse(model, (x,), weights="lossless")
    slots = [b for row in fast.kernel.plan.rendered.slots for b in row if b.role == "state"]
    schemes = {b.target: b.scheme for b in slots}
    assert schemes == {"a.weight": "lossless", "b.weight": ""}
    assert fast.kernel.packed_bytes == 3 * 2 * 1600
    torch.testing.assert_close(fast(x), model(x), atol=2e-2, rtol=2e-2)
    assert fast.certificate.verdict == "proved"
