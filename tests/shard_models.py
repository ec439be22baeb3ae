"""Small models of six families, and a batch of each, for the tests of `quire.shard`."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

WORDS, WIDTH, SEED = 97, 32, 0
FAMILIES = ("llama", "gpt2", "qwen3", "bert", "vit", "mixtral")
MORE = ("bart", "whisper", "t5", "videomae")
"""Sequences of two lengths, and one of space and time."""


def build(
    family: str, size: int, dtype: torch.dtype = torch.float32, packed: bool = False
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model in training mode and a batch of two with labels, some of them ignored."""
    torch.manual_seed(SEED)
    ids = torch.randint(WORDS, (2, size))
    labels = ids.clone()
    labels[:, 3:5] = -100
    batch = {"input_ids": ids, "labels": labels}
    common: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    grouped = {"num_attention_heads": 8, "num_key_value_heads": 4, "use_cache": False}
    if family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**common, **grouped))
    elif family == "qwen3":
        # One layer of full attention, one of a sliding window; fewer key heads than 4 ranks.
        grouped["num_key_value_heads"] = 2
        sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**common, **grouped, **sliding, head_dim=8))
    elif family in ("mixtral", "mixtral-aux"):
        # The auxiliary loss is of how all tokens are spread over the experts.
        experts = {"num_local_experts": 4, "sliding_window": None}
        experts["output_router_logits"] = family == "mixtral-aux"
        model = hf.MixtralForCausalLM(hf.MixtralConfig(**common, **grouped, **experts))
    elif family == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 3 + 1}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**shape, **quiet, use_cache=False))
    elif family == "bert":
        model = hf.BertForMaskedLM(hf.BertConfig(**common, **still, num_attention_heads=4))
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][0, -4:] = 0
    else:
        # 16 patches and the class token: 17, a prime number of rows.
        shape = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8, "num_labels": 5}
        model = hf.ViTForImageClassification(hf.ViTConfig(**shape, **still))
        batch = {
            "pixel_values": torch.randn(2, 3, 32, 32).to(dtype),
            "labels": torch.tensor([1, 3]),
        }
    if family in MORE:
        model, batch = _more(family, size, dtype)
    if packed:
        first = size // 3
        places = torch.cat([torch.arange(first), torch.arange(size - first)])
        batch["position_ids"] = places.expand(2, -1).contiguous()
    return model.to(dtype).train(), batch


def _more(family: str, size: int, dtype: torch.dtype) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Encoders and decoders of other lengths, both prime; a video's patches as one sequence."""
    torch.manual_seed(SEED)
    ids, target = torch.randint(2, WORDS, (2, 29)), torch.randint(2, WORDS, (2, size))
    labels = target.clone()
    labels[:, 3:5] = -100
    batch = {"input_ids": ids, "decoder_input_ids": target, "labels": labels}
    halves = {f"{x}_{k}": v for x in ("encoder", "decoder") for k, v in
              (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    common: dict[str, Any] = {"vocab_size": WORDS, "d_model": WIDTH, "use_cache": False}
    if family == "bart":
        places = {"max_position_embeddings": 64, "dropout": 0.0}
        return hf.BartForConditionalGeneration(hf.BartConfig(**common, **halves, **places)), batch
    if family == "t5":
        shape = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        config = hf.T5Config(**common, **shape, attn_implementation="sdpa")
        return hf.T5ForConditionalGeneration(config), batch
    if family == "whisper":
        sizes = {"num_mel_bins": 8, "max_source_positions": 29, "max_target_positions": 64}
        marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = hf.WhisperConfig(
            **common, **halves, **sizes, **marks, decoder_start_token_id=1, dropout=0.0
        )
        batch["input_features"] = torch.randn(2, 8, 58).to(dtype)
        del batch["input_ids"]
        return hf.WhisperForConditionalGeneration(config), batch
    # Three pairs of frames of four patches: 12 rows.
    shape = {"image_size": 16, "patch_size": 8, "num_frames": 6, "tubelet_size": 2}
    shape |= {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    config = hf.VideoMAEConfig(**shape, num_attention_heads=4, num_labels=5)
    frames = torch.randn(2, 6, 3, 16, 16).to(dtype)
    model = hf.VideoMAEForVideoClassification(config)
    return model, {"pixel_values": frames, "labels": torch.tensor([1, 3])}
