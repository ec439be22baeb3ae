"""Tokens picked within the kernel: by the distribution that transformers' own warpers give."""

from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TextStreamer

import quire
from quire.capture.pick import pick
from quire.errors import InputError, QuireError
from quire.runtime.choice import draws
from tests.kernel.models import causal_lm

IDS: Any = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(3))
LEFT = torch.ones_like(IDS)
LEFT[0, :4] = 0


@pytest.fixture(scope="module")
def model():
    return causal_lm("llama")


@pytest.fixture(scope="module")
def fast(optimised, model):
    return quire.fuse(model, max_length=64, max_batch=3, sampling=True)


@pytest.mark.parametrize("heat, least", [(1.0, 0.0), (0.7, 0.0), (1.3, 0.1)])
def test_draws_on_a_grid_give_the_warpers_distribution(heat, least):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 3
    warped = TemperatureLogitsWarper(heat)(IDS[:1], logits)
    if least:
        warped = MinPLogitsWarper(least)(IDS[:1], warped)
    points = 1 << 13
    grid = torch.arange(points) / points
    chosen = pick(
        logits.expand(points, -1), torch.full((points,), heat), torch.full((points,), least), grid
    )
    share = torch.bincount(chosen, minlength=50) / points
    assert (share - warped.softmax(-1)[0]).abs().max() < 1.5 / points
    assert bool((chosen.diff() >= 0).all()), "the inverse of a distribution function"


def test_no_temperature_takes_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert pick(logits, torch.zeros(2), torch.zeros(2), torch.tensor([0.9, 0.9])).tolist() == [1, 0]


def test_draws_are_even_and_apart():
    got = torch.cat([draws(7, [at] * 8) for at in range(2000)])
    assert got.min() >= 0 and got.max() < 1 and bool((got * 2**23 == (got * 2**23).round()).all())
    assert abs(got.mean() - 0.5) < 0.01 and abs(got.var() - 1 / 12) < 0.003
    assert not torch.equal(draws(7, [1, 2]), draws(8, [1, 2]))


def test_the_kernel_with_its_choice_is_proved(fast):
    assert fast.certificate.verdict == "proved", fast.certificate.reason


def test_no_temperature_is_greedy_generation(fast):
    asked = dict(attention_mask=LEFT, max_new_tokens=30)
    want = fast.generate(input_ids=IDS, do_sample=False, **asked)
    assert torch.equal(fast.sample(IDS, temperature=0.0, **asked), want)


@pytest.mark.parametrize("heat, least", [(1.0, 0.0), (0.6, 0.05)])
def test_the_kernel_picks_what_the_models_logits_say(fast, model, heat, least):
    got = fast.sample(IDS, max_new_tokens=30, temperature=heat, min_p=least, seed=11)
    ids = IDS
    for at in range(IDS.shape[1] - 1, got.shape[1] - 1):
        logits = model(ids).logits[:, -1]
        heats, leasts = torch.full((2,), heat), torch.full((2,), least)
        ids = torch.cat([ids, pick(logits, heats, leasts, draws(11, [at, at]))[:, None]], 1)
    assert torch.equal(got, ids)
    assert not torch.equal(got, fast.sample(IDS, max_new_tokens=30, temperature=heat, seed=12))


def test_a_row_says_the_same_alone(fast):
    both = fast.sample(IDS, LEFT, max_new_tokens=20, seed=5)
    alone = fast.sample(IDS[:1, 4:], max_new_tokens=20, seed=5)
    assert torch.equal(both[0, 9:], alone[0, 5:])


def test_rows_end_and_are_filled_up(fast, monkeypatch):
    free = fast.sample(IDS, max_new_tokens=12, temperature=0.0)[:, 9:]
    end = int(free[0, 3])
    monkeypatch.setattr(fast.generation_config, "eos_token_id", [end])
    monkeypatch.setattr(fast.generation_config, "pad_token_id", 0)
    asked = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=12)
    want = fast.generate(input_ids=IDS, do_sample=False, **asked)
    assert torch.equal(fast.sample(IDS, temperature=0.0, **asked), want)
    assert want[0, 9:].tolist().index(end) <= 3


def test_a_streamer_hears_every_token(fast):
    class Heard(TextStreamer):
        def __init__(self):
            self.tokens, self.over = [], False

        def put(self, value):
            self.tokens.append(value.reshape(-1))

        def end(self):
            self.over = True

    heard = Heard()
    got = fast.sample(IDS[:1], max_new_tokens=5, seed=1, streamer=heard)
    assert torch.equal(torch.cat(heard.tokens), got[0]) and heard.over


def test_what_is_refused(fast, model):
    with pytest.raises(InputError, match=r"temperature=-1"):
        fast.sample(IDS, max_new_tokens=5, temperature=-1)
    with pytest.raises(InputError, match=r"64 tokens"):
        fast.sample(IDS, max_new_tokens=60)
    with pytest.raises(QuireError, match=r"a Hugging Face causal LM alone"):
        quire.fuse(model.lm_head, (torch.zeros(1, 64),), sampling=True)
    plain = quire.fuse(model, max_length=16, verify=False)
    with pytest.raises(InputError, match=r"sampling=True"):
        plain.sample(IDS, max_new_tokens=2)
