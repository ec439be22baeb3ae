"""`quire.fuse` on a causal LM: Hugging Face's generate, token for token."""

import copy

import pytest
import torch
from transformers import TextStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

import quire
from quire.errors import InputError
from tests.kernel.models import causal_lm

IDS = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(3))
LEFT = torch.ones_like(IDS)
LEFT[0, :4] = 0
RIGHT = torch.ones_like(IDS)
RIGHT[0, -3:] = 0


@pytest.fixture(scope="module")
def pair(optimised):
    model = causal_lm("llama")
    return model, quire.fuse(model, max_length=256, max_batch=6)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(attention_mask=LEFT),
        dict(attention_mask=LEFT, do_sample=True, top_k=20),
        dict(attention_mask=LEFT, num_beams=3),
        dict(do_sample=True, num_return_sequences=3),
    ],
    ids=["greedy", "left", "sample", "beams", "several"],
)
def test_same_tokens_as_the_model(pair, options):
    found = []
    for each in pair:
        torch.manual_seed(5)
        options = {"do_sample": False, **options}
        found.append(each.generate(input_ids=IDS, max_new_tokens=30, **options))
    assert torch.equal(*found)


def test_a_step_gives_what_transformers_makes(pair):
    _, fast = pair
    cache = fast.new_cache(2)
    fast(IDS, past_key_values=cache)
    got = fast(IDS[:, :1], past_key_values=cache)
    want = CausalLMOutputWithPast(logits=got.logits, past_key_values=cache)
    assert type(got) is type(want) and list(got.items()) == list(want.items())
    assert got.loss is None and got[0] is got.logits and got.to_tuple() == want.to_tuple()
    assert got.logits.shape == (2, 1, 320) and cache.lengths.tolist() == [10, 10]


def test_a_cache_counts_in_place_and_its_copy_apart(pair):
    _, fast = pair
    cache = fast.new_cache(2)
    given = torch.zeros(2, dtype=torch.int32)
    cache.lengths = given
    steps = [fast(IDS[:, t : t + 1], past_key_values=cache).logits for t in range(4)]
    held = cache.lengths
    assert held.tolist() == [4, 4] and given.tolist() == [0, 0]
    other = copy.deepcopy(cache)
    cache.crop(2)
    assert cache.lengths is held and held.tolist() == [2, 2] and other.lengths.tolist() == [4, 4]
    again = [fast(IDS[:, t : t + 1], past_key_values=cache).logits for t in (2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(again, steps[2:], strict=True))
    after = fast(IDS[:, 4:5], past_key_values=other).logits
    assert other.lengths.tolist() == [5, 5] and held.tolist() == [4, 4]
    assert torch.equal(after, fast(IDS[:, 4:5], past_key_values=cache).logits)
    cache.reorder_cache(torch.tensor([1, 0]))
    swapped = fast(IDS[[1, 0], 3:4], past_key_values=cache).logits
    assert torch.equal(swapped[[1, 0]], fast(IDS[:, 3:4], past_key_values=other).logits)


def test_right_padding_gives_what_each_row_gives_alone(pair):
    """transformers reads the logits of a pad here, and warns."""
    model, fast = pair
    got = fast.generate(input_ids=IDS, attention_mask=RIGHT, max_new_tokens=30, do_sample=False)
    for row, mask, ids in zip(got, RIGHT, IDS, strict=True):
        alone = ids[mask.bool()][None]
        want = model.generate(input_ids=alone, max_new_tokens=30, do_sample=False)[0]
        assert torch.equal(row[IDS.shape[1] :], want[alone.shape[1] :])


def test_greedy_over_200_steps(pair):
    a, b = (m.generate(input_ids=IDS[:1], max_new_tokens=200, do_sample=False) for m in pair)
    assert a.shape[1] == 209 and torch.equal(a, b)


def test_prompt_lookup(pair):
    a, b = (
        m.generate(
            input_ids=IDS[:1], max_new_tokens=30, do_sample=False, prompt_lookup_num_tokens=3
        )
        for m in pair
    )
    assert torch.equal(a, b)


def test_prompt_in_parts_gives_the_same(pair):
    model, fast = pair
    ids = torch.randint(1, 320, (2, 100), generator=torch.Generator().manual_seed(4))
    want = model.generate(input_ids=ids, max_new_tokens=10, do_sample=False)
    before, fast.prefill_memory = fast.prefill_memory, 1
    parts = []
    forward = model.forward
    model.forward = lambda *a, **k: parts.append(k["input_ids"].shape[1]) or forward(*a, **k)
    try:
        got = fast.generate(input_ids=ids, max_new_tokens=10, do_sample=False)
    finally:
        fast.prefill_memory = before
        del model.forward
    assert torch.equal(got, want)
    assert parts == [16] * 6 + [4]


def test_the_model_is_not_asked_for_decode_steps(pair):
    model, fast = pair
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    fast.generate(input_ids=IDS, max_new_tokens=10, do_sample=False)
    handle.remove()
    assert len(calls) == 1


class Words:
    """A tokenizer of numbers."""

    def decode(self, ids, **_):
        return "".join(f"{int(i)} " for i in ids)


def test_streams(pair, capsys):
    _, fast = pair
    ids = fast.generate(
        input_ids=IDS[:1], max_new_tokens=5, do_sample=False, streamer=TextStreamer(Words())
    )
    assert capsys.readouterr().out.split() == [str(int(i)) for i in ids[0]]


@pytest.mark.parametrize(
    "options, found",
    [(dict(max_new_tokens=300), "309 tokens"), (dict(max_new_tokens=4, num_beams=4), "8 rows")],
)
def test_what_does_not_fit_is_refused_before_it_starts(pair, options, found):
    model, fast = pair
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=found):
        fast.generate(input_ids=IDS, do_sample=False, **options)
    handle.remove()
    assert not calls


def test_phases_in_words(pair):
    _, fast = pair
    phases = fast.kernel.phases
    assert [p.runs for p in phases] == [1, 2, 2, 2, 2, 2, 1]
    assert any("attention" in line for line in phases[2].computes)
    total = sum(p.numel() * 4 for n, p in pair[0].named_parameters() if p.ndim > 1)
    embedding = pair[0].get_input_embeddings().weight.numel() * 4
    assert fast.kernel.streamed_bytes == total - embedding
    assert '#include "native.hpp"' in fast.kernel.source
