"""Builders of the image and audio families: `(real, attn, length, layers)` to model and call."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Model = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _attn(attn: str) -> dict[str, Any]:
    return {"attn_implementation": attn}


def _image(side: int) -> torch.Tensor:
    return torch.randn(1, 3, side, side)


def vit(real: bool, attn: str, length: int, layers: int | None) -> Model:
    """ViT-L/16 with 8 of its 24 layers."""
    width, heads, depth = (1024, 16, 8) if real else (64, 4, 2)
    config = hf.ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_hidden_layers=layers or depth,
        image_size=length,
        patch_size=16,
        **_attn(attn),
    )
    return hf.ViTModel(config), (_image(length),), {}


def swin(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, depths = (96, (2, 2, layers or 6, 2)) if real else (16, (2, layers or 2))
    config = hf.SwinConfig(
        embed_dim=width,
        depths=list(depths),
        num_heads=[2 * 2**i for i in range(len(depths))],
        window_size=7 if real else 5,
        image_size=length,
        **_attn(attn),
    )
    return hf.SwinModel(config), (_image(length),), {}


def segformer(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = hf.SegformerConfig(
        hidden_sizes=[32, 64, 160, 256] if real else [16, 32, 32, 64],
        num_attention_heads=[1, 2, 5, 8] if real else [1, 2, 2, 4],
        depths=[layers or (2 if real else 1)] * 4,
        decoder_hidden_size=256 if real else 32,
        **_attn(attn),
    )
    return hf.SegformerForSemanticSegmentation(config), (_image(length),), {}


def convnext(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = hf.ConvNextConfig(
        hidden_sizes=[96, 192, 384, 768] if real else [16, 32, 48, 64],
        depths=[3, 3, layers or 9, 3] if real else [1, 1, layers or 2, 1],
        image_size=length,
    )
    return hf.ConvNextModel(config), (_image(length),), {}


def whisper(real: bool, attn: str, length: int, layers: int | None) -> Model:
    """The encoder; it takes exactly twice `max_source_positions` frames."""
    width, heads, depth = (384, 6, 4) if real else (64, 4, 2)
    config = hf.WhisperConfig(
        d_model=width,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        encoder_layers=layers or depth,
        max_source_positions=length // 2,
        num_mel_bins=80,
        **_attn(attn),
    )
    return WhisperEncoder(config), (torch.randn(1, 80, length),), {}


def wav2vec2(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, heads, depth = (768, 12, 4) if real else (64, 4, 2)
    config = hf.Wav2Vec2Config(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_hidden_layers=layers or depth,
        conv_dim=(512,) * 7 if real else (32,) * 7,
        num_conv_pos_embeddings=128 if real else 16,
        num_conv_pos_embedding_groups=16 if real else 4,
        **_attn(attn),
    )
    return hf.Wav2Vec2Model(config), (torch.randn(1, length),), {}
