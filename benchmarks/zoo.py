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
from torch.utils import _pytree as pytree

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
    size's own depth. `step` is what a length must be a multiple of, `least` the shortest one,
    `small * grows` the longest that the small model is tried at.
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
    grows: int = 12
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
    On `device="meta"` there are shapes only. `device="hollow"` is the CPU with weights and inputs
    that nobody wrote: they take no memory until touched, enough to plan with, and unlike `meta` it
    is a device that every model's own code accepts.
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
    shapes_only = device in ("meta", "hollow")
    with torch.device("meta" if shapes_only else device):
        model, args, kwargs = case.make(size == "real", attn, length, layers)
        if not shapes_only:
            stir(model)
    if device == "hollow":
        model, (args, kwargs) = model.to_empty(device="cpu"), hollow((args, kwargs))
    model.eval().requires_grad_(False)
    return Built(model, args, kwargs)


def hollow(values: Any) -> Any:
    """`values` with every tensor in it on the CPU, unwritten."""

    def empty(value: Any) -> Any:
        return torch.empty_like(value, device="cpu") if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(empty, values)


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
    eager: Any = {"attention": ("eager",)}
    tokens: Any = {"dynamic": t.ids_dynamic}
    pairs: Any = {"dynamic": t.esmfold_dynamic}
    # name, family, builder, unit, small and real length, step, least, growth
    rows = [
        Case("gpt2", "GPT-2", t.gpt2, "tokens", 80, 4096, **tokens),
        Case("gpt2-masked", "GPT-2", t.gpt2_masked, "tokens", 80, 4096, note="padded", **tokens),
        Case("llama", "Llama", t.llama, "tokens", 80, 4096, **tokens),
        Case("qwen3", "Qwen3", t.qwen3, "tokens", 80, 4096, **tokens),
        Case("mixtral", "Mixtral", t.mixtral, "tokens", 80, 1024, note="batched_mm", **tokens),
        Case(
            "mixtral-grouped", "Mixtral", t.mixtral_grouped, "tokens", 80, 1024, note="grouped_mm",
            **tokens,
        ),
        Case("bert", "BERT", t.bert, "tokens", 80, 4096, **tokens),
        Case("bert-masked", "BERT", t.bert_masked, "tokens", 80, 4096, note="padded", **tokens),
        Case("t5-encoder", "T5", t.t5_encoder, "tokens", 80, 4096, note="encoder", **tokens),
        Case("t5", "T5", t.t5, "tokens", 80, 2048, note="encoder and decoder", **tokens),
        Case("esm2", "ESM-2", t.esm2, "residues", 80, 2048, **tokens),
        Case("esmfold", "ESMFold", t.esmfold, "residues", 32, 256, 1, 2, 4, **eager, **pairs),
        Case("mamba", "Mamba", t.mamba, "tokens", 24, 256, 1, 2, 2, note="plain torch", **eager),
        Case("vit", "ViT", v.vit, "px", 128, 1024, 16, 32, 4),
        Case("swin", "Swin", v.swin, "px", 64, 1024, 4, 64, 4),
        Case("segformer", "SegFormer", v.segformer, "px", 64, 1024, 32, 32, 4),
        Case("convnext", "ConvNeXt", v.convnext, "px", 64, 1024, 32, 32, 4, **eager),
        Case("whisper", "Whisper", v.whisper, "mel frames", 128, 3000, 2, 8),
        Case("wav2vec2", "Wav2Vec2", v.wav2vec2, "samples", 8000, 480_000, 1, 800, 6),
        Case("unet2d", "UNet2DModel", d.unet2d, "px", 32, 256, 8, 16, 4),
        Case(
            "unet2d-condition", "UNet2DConditionModel", d.unet2d_condition, "latent px", 16, 96,
            8, 16, 4,
        ),
        Case("vae-encode", "AutoencoderKL", d.vae_encode, "px", 64, 512, 8, 32, 3, note="encode"),
        Case(
            "vae-decode", "AutoencoderKL", d.vae_decode, "latent px", 8, 64, 1, 4, 3, note="decode"
        ),
        Case("dit", "DiT", d.dit, "latent px", 16, 64, 2, 4, 4),
    ]  # fmt: skip
    return {case.name: case for case in rows}


CASES = _table()
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES.values()))
