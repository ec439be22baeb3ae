"""Builders of the diffusers families: `(real, attn, length, layers)` to model, args, kwargs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

Model = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _attention(model: nn.Module, attn: str) -> None:
    """Make every attention eager, or the one that calls `scaled_dot_product_attention`."""
    processor: Any = AttnProcessor() if attn == "eager" else AttnProcessor2_0()
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)


def unet2d(real: bool, attn: str, length: int, layers: int | None) -> Model:
    widths = (64, 128, 256) if real else (16, 32, 32)
    model = UNet2DModel(
        sample_size=length,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=layers or (2 if real else 1),
        norm_num_groups=32 if real else 8,
        attention_head_dim=32 if real else 8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    _attention(model, attn)
    return model, (torch.randn(1, 3, length, length), torch.tensor([10])), {}


def unet2d_condition(real: bool, attn: str, length: int, layers: int | None) -> Model:
    """Stable-Diffusion's layout, narrower: attention over the latent from the first block."""
    widths: Any  # diffusers annotates these as tuples of one
    widths, context = ((64, 128, 256, 256), 256) if real else ((16, 32, 32, 32), 24)
    model = UNet2DConditionModel(
        sample_size=length,
        block_out_channels=widths,
        cross_attention_dim=context,
        layers_per_block=layers or (2 if real else 1),
        norm_num_groups=32 if real else 8,
        attention_head_dim=8 if real else 2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    _attention(model, attn)
    text = torch.randn(1, 77 if real else 7, context)
    return model, (torch.randn(1, 4, length, length), torch.tensor([10]), text), {}


class Encode(nn.Module):
    """Image to the mean and log-variance of its latent."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(image).latent_dist.parameters  # pyright: ignore


class Decode(nn.Module):
    """Latent to image."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent).sample  # pyright: ignore


def _vae(real: bool, attn: str, layers: int | None) -> AutoencoderKL:
    widths: Any = (64, 128, 256, 256) if real else (16, 32, 32, 32)
    down: Any = ("DownEncoderBlock2D",) * 4
    up: Any = ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(
        block_out_channels=widths,
        latent_channels=4,
        norm_num_groups=32 if real else 8,
        layers_per_block=layers or (2 if real else 1),
        down_block_types=down,
        up_block_types=up,
    )
    _attention(vae, attn)
    return vae


def vae_encode(real: bool, attn: str, length: int, layers: int | None) -> Model:
    return Encode(_vae(real, attn, layers)), (torch.randn(1, 3, length, length),), {}


def vae_decode(real: bool, attn: str, length: int, layers: int | None) -> Model:
    return Decode(_vae(real, attn, layers)), (torch.randn(1, 4, length, length),), {}


def dit(real: bool, attn: str, length: int, layers: int | None) -> Model:
    heads, width, depth = (6, 64, 8) if real else (4, 16, 2)
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width,
        num_layers=layers or depth,
        in_channels=4,
        out_channels=8,
        sample_size=length,
        patch_size=2,
        norm_num_groups=32,
    )
    _attention(model, attn)
    inputs = torch.randn(1, 4, length, length), torch.tensor([10]), torch.tensor([7])
    return model, inputs, {}
