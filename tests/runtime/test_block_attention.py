"""One block at a time against torch's attention; every path of the kernel table on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from quire.runtime import block_attention as block
from quire.runtime.block_attention import Accumulator, Visible, blocks

RUN = st.tuples(st.just(0), st.integers(0, 12), st.integers(1, 8))
ENDS = st.one_of(st.none(), st.integers(0, 6))


@given(RUN, RUN, ENDS, ENDS)
def test_band_says_what_the_places_say(q, k, left, right) -> None:
    seen = [
        (right is None or j <= i + right) and (left is None or j >= i - left)
        for i in range(q[1], q[1] + q[2])
        for j in range(k[1], k[1] + k[2])
    ]
    kind = Visible(left, right).band(q, k)
    if kind == "all":
        assert all(seen)
    elif kind == "none":
        assert not any(seen)
    elif kind == "causal":
        assert seen == [j <= i for i in range(q[2]) for j in range(k[2])]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_blocks_of_keys_join_to_the_whole(lengths, causal, plain) -> None:
    size = sum(lengths)
    q, k, v = (torch.randn(1, h, size, 8) for h in (4, 2, 2))
    total = Accumulator(q)
    visible = Visible(None, 0 if causal else None)
    if plain:
        s = block._scores(q, k, None, causal, 8**-0.5)
        assert_close(block._plain_forward(q, k, v, None, causal, 8**-0.5)[1], s.logsumexp(-1))
    at = 0
    for n in lengths:
        run = (at, at, n)
        block.forward(total, q, k, v, blocks(visible, [(0, 0, size)], [run], q), 8**-0.5)
        at += n
    out, lse = total.result(q.dtype)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert_close(out, want, rtol=1e-5, atol=2e-6)
    assert lse.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_plain_path_gives_the_fused_paths_gradients(causal: bool) -> None:
    q, k, v, grad = (torch.randn(1, h, 9, 8) for h in (4, 2, 2, 4))
    out, lse = block.block_forward(q, k, v, None, causal, 0.3)
    plain_out, plain_lse = block._plain_forward(q, k, v, None, causal, 0.3)
    assert_close(out, plain_out)
    assert_close(lse, plain_lse)
    fused = block.block_backward(grad, q, k, v, out, lse, None, causal, 0.3)
    plain = block._plain_backward(grad, q, k, v, out, lse, None, causal, 0.3)
    for a, b in zip(fused, plain, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_row_without_keys_is_zero_and_so_are_its_gradients() -> None:
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    documents = torch.tensor([0, 1, 1, 1])
    others = torch.tensor([5, 1, 1, 1])
    visible = Visible(None, None, "eq.Tensor(x0, x1)", (documents[:, None], others[None, :]))
    total = Accumulator(q)
    run = [(0, 0, 4)]
    block.forward(total, q, k, v, blocks(visible, run, run, q), 0.3)
    out, lse = total.result(q.dtype)
    assert (out[:, :, 0] == 0).all()
    assert (lse[:, :, 0] == -math.inf).all()
    grads = tuple(torch.zeros_like(x) for x in (q, k, v))
    block.backward(
        grads, torch.ones_like(out), q, k, v, out, lse, blocks(visible, run, run, q), 0.3
    )
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][:, :, 0] == 0).all()
