"""Every model family that Quire is measured on: seeded random weights, nothing downloaded.

    build("gpt2")                                    small: two layers, exports in seconds
    build("gpt2", "real", "sdpa")                    the size that issue 2 asks figures for
    build("gpt2", "real", length=8192, layers=2)     another length, fewer layers

A model's inputs follow from one number, its `length`: tokens, residues, pixels, latent pixels,
audio samples or mel frames, as `Case.unit` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import attrs
import torch
from torch import nn

from benchmarks import diffusion, text, vision

Size = Literal["small", "real"]
Attention = Literal["eager", "sdpa"]


class Built(NamedTuple):
    """A model in eval mode and the arguments of one call."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@attrs.frozen
class Case:
    """One model family at two sizes.

    `make(real, attn, length, layers)` returns `(model, args, kwargs)`; `layers` is None for the
    size's own depth. `step` is what a length must be a multiple of, `least` the shortest one, `small * grows` the
    longest that the small model is tried at.
    `dynamic` takes a `torch.export.Dim` and returns the `dynamic_shapes` of the positional inputs,
    for families whose graph can be exported for a range of lengths; None where it cannot.
    """

    name: str
    family: str
    make: Callable[..., tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    unit: str
    small: int
    real: int
    step: int = 1
    least: int = 2
    grows: int = 6
    attention: tuple[Attention, ...] = ("eager", "sdpa")
    dynamic: Callable[[Any], Any] | None = None
    note: str = ""

    def length(self, size: Size) -> int:
        return self.small if size == "small" else self.real


def build(
    name: str,
    size: Size = "small",
    attn: Attention = "eager",
    *,
    length: int | None = None,
    layers: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Built:
    """The model of case `name` in eval mode, and its arguments at `length`.

    Raises KeyError for an unknown name and ValueError for a length the family cannot take.
    On `device="meta"` nothing is allocated: shapes only.
    """
    case = CASES[name]
    length = length or case.length(size)
    if length % case.step or length < case.least:
        raise ValueError(
            f"{name} takes lengths from {case.least} in steps of {case.step} {case.unit}"
        )
    if attn not in case.attention:
        attn = case.attention[0]
    torch.manual_seed(seed)
    with torch.device(device):
        model, args, kwargs = case.make(size == "real", attn, length, layers)
        if device != "meta":
            stir(model)
    model.eval().requires_grad_(False)
    return Built(model, args, kwargs)


def dynamic_shapes(name: str, built: Built, dim: Any) -> dict[str, Any]:
    """`torch.export`'s `dynamic_shapes` for a call whose length is `dim`, by argument name."""
    case = CASES[name]
    if case.dynamic is None:
        raise ValueError(f"{name} is exported for one length only")
    model, args, kwargs = built
    names = list(inspect.signature(model.forward).parameters)
    shapes: dict[str, Any] = dict(zip(names, case.dynamic(dim), strict=False))
    length = args[0].shape[1]
    for key, value in kwargs.items():
        same = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == length
        shapes[key] = {1: dim} if same else None
    return shapes


def stir(model: nn.Module) -> None:
    """Add seeded noise to parameters that are all one value.

    Zero-initialised gates, biases and output projections multiply what comes before them by
    nothing, so that a wrong answer would pass unseen.
    """
    for parameter in model.parameters():
        data = parameter.data
        if data.is_floating_point() and data.numel() and bool((data == data.flatten()[0]).all()):
            data.add_(torch.randn_like(data), alpha=0.05)


def _table() -> dict[str, Case]:
    t, v, d = text, vision, diffusion
    tokens: dict[str, Any] = {"unit": "tokens", "small": 80, "dynamic": t.ids_dynamic}
    image: dict[str, Any] = {"unit": "px"}
    rows = [
        Case("gpt2", "GPT-2", t.gpt2, real=4096, **tokens),
        Case("gpt2-masked", "GPT-2", t.gpt2_masked, real=4096, note="padding mask", **tokens),
        Case("llama", "Llama", t.llama, real=4096, **tokens),
        Case("qwen3", "Qwen3", t.qwen3, real=4096, **tokens),
        Case("mixtral", "Mixtral", t.mixtral, real=2048, note="experts: batched_mm", **tokens),
        Case(
            "mixtral-grouped",
            "Mixtral",
            t.mixtral_grouped,
            real=2048,
            note="experts: grouped_mm",
            **tokens,
        ),
        Case("bert", "BERT", t.bert, real=4096, **tokens),
        Case("bert-masked", "BERT", t.bert_masked, real=4096, note="padding mask", **tokens),
        Case("t5-encoder", "T5", t.t5_encoder, real=4096, **tokens),
        Case("t5", "T5", t.t5, real=2048, note="encoder and decoder", **tokens),
        Case("esm2", "ESM-2", t.esm2, "residues", small=80, real=2048, dynamic=t.ids_dynamic),
        Case(
            "esmfold",
            "ESMFold",
            t.esmfold,
            "residues",
            small=32,
            real=256,
            attention=("eager",),
            dynamic=t.esmfold_dynamic,
            note="one trunk block",
        ),
        Case(
            "mamba",
            "Mamba",
            t.mamba,
            "tokens",
            small=24,
            real=256,
            attention=("eager",),
            note="the path in plain torch, one step of the graph per token",
        ),
        Case("vit", "ViT", v.vit, small=128, real=1024, step=16, least=32, **image),
        Case("swin", "Swin", v.swin, small=64, real=1024, step=4, least=32, **image),
        Case(
            "segformer", "SegFormer", v.segformer, small=64, real=1024, step=32, least=32, **image
        ),
        Case(
            "convnext",
            "ConvNeXt",
            v.convnext,
            small=64,
            real=1024,
            step=32,
            least=32,
            attention=("eager",),
            **image,
        ),
        Case("whisper", "Whisper", v.whisper, "mel frames", small=128, real=3000, step=2),
        Case("wav2vec2", "Wav2Vec2", v.wav2vec2, "samples", small=8000, real=480_000, least=800),
        Case("unet2d", "UNet2DModel", d.unet2d, small=32, real=256, step=8, least=16, **image),
        Case(
            "unet2d-condition",
            "UNet2DConditionModel",
            d.unet2d_condition,
            "latent px",
            small=16,
            real=96,
            step=8,
            least=16,
        ),
        Case(
            "vae-encode",
            "AutoencoderKL",
            d.vae_encode,
            small=64,
            real=512,
            step=8,
            least=32,
            **image,
        ),
        Case("vae-decode", "AutoencoderKL", d.vae_decode, "latent px", small=8, real=64, least=4),
        Case("dit", "DiT", d.dit, "latent px", small=16, real=64, step=2, least=4),
    ]
    return {case.name: case for case in rows}


CASES = _table()
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES.values()))
