"""Every model family: how many attentions are found, and that the outputs stay equal."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import _pytree as pytree

from benchmarks import zoo
from quire.capture.program import Program
from quire.rewrite import fuse_attention, simplify

from .programs import SDPA, aten, calls, check_equal, count, quiet_capture

EXPECTED = {
    # name: (attentions, of these causal without a mask, softmaxes that are no attention)
    "gpt2": (2, 2, 0),
    "gpt2-masked": (2, 0, 0),
    "llama": (2, 2, 0),
    "qwen3": (2, 2, 0),
    "mixtral": (2, 2, 2),
    "mixtral-grouped": (2, 2, 2),
    "bert": (2, 0, 0),
    "bert-masked": (2, 0, 0),
    "t5-encoder": (2, 0, 0),
    "t5": (6, 0, 0),
    "esm2": (2, 0, 0),
    "esmfold": (3, 0, 0),
    "mamba": (0, 0, 0),
    "vit": (2, 0, 0),
    "swin": (4, 0, 0),
    "segformer": (4, 0, 0),
    "convnext": (0, 0, 0),
    "whisper": (2, 0, 0),
    "wav2vec2": (2, 0, 0),
    "unet2d": (4, 0, 0),
    "unet2d-condition": (20, 0, 0),
    "vae-encode": (1, 0, 0),
    "vae-decode": (1, 0, 0),
    "dit": (2, 0, 0),
}
LENGTHS = {"gpt2": 37, "llama": 37, "bert-masked": 37, "esmfold": 13}
"""Exported for all lengths, and run at a second one."""
LAYOUT_UNKNOWN = {"segformer", "unet2d", "vae-encode", "vae-decode"}
"""torch.export itself (2.13) reports other strides than a run has, behind a convolution or
group_norm of a channels-last tensor on a CPU."""

SLOW = {
    "qwen3",
    "mixtral-grouped",
    "t5-encoder",
    "esm2",
    "mamba",
    "convnext",
    "dit",
    "unet2d-condition",
    "vae-encode",
    "vae-decode",
}
"""Run with QUIRE_ALL_FAMILIES=1: nothing in them that another family does not have."""


def arguments(program: Program, built: zoo.Built) -> list[object]:
    leaves = pytree.tree_leaves((built.args, built.kwargs))
    state = {i.node for i in program.inputs if i.kind != "user"}
    places = [n for n in program.graph.nodes if n.op == "placeholder" and n not in state]
    assert len(leaves) == len(places)
    return leaves


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPECTED)
def test_family(name: str) -> None:
    if name in SLOW and "QUIRE_ALL_FAMILIES" not in os.environ:
        pytest.skip("slow; set QUIRE_ALL_FAMILIES=1")
    built = zoo.build(name)
    shapes = None
    if name in LENGTHS:
        shapes = zoo.dynamic_shapes(name, built, torch.export.Dim("length", min=2, max=4096))
    before = quiet_capture(built.model, built.args, built.kwargs, shapes)
    after = simplify(fuse_attention(simplify(before)))
    attentions, causal, softmaxes = EXPECTED[name]
    assert count(after, SDPA) == attentions
    assert sum(op["is_causal"] for op in calls(after, SDPA)) == causal
    assert count(after, aten.softmax.int, aten._softmax.default) == softmaxes
    facts = name not in LAYOUT_UNKNOWN
    check_equal(before, after, *arguments(after, built), tolerance=2e-4, facts=facts)
    if name in LENGTHS:
        other = zoo.build(name, length=LENGTHS[name])
        check_equal(before, after, *arguments(after, other), tolerance=2e-4)


def test_all_families_are_here() -> None:
    assert set(EXPECTED) == set(zoo.CASES)
