"""Builders of the text and protein families: `(real, attn, length, layers)` to model, args, kwargs.

Causal models run as in the first step of a generation: no cache, logits of the last token only.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

Model = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _attn(attn: str) -> dict[str, Any]:
    return {"attn_implementation": attn}


def _ids(vocabulary: int, length: int) -> torch.Tensor:
    # Above the first few ids: those are padding and masks, which some models single out.
    return torch.randint(5, vocabulary, (1, length))


def _padding(length: int) -> torch.Tensor:
    """A mask whose first eighth is padding, as a tokenizer makes for a batch of one long row."""
    mask = torch.ones(1, length, dtype=torch.long)
    mask[:, : max(1, length // 8)] = 0
    return mask


def ids_dynamic(length: Any) -> Any:
    """`dynamic_shapes` for a model called with token ids alone."""
    return ({1: length},)


def _causal(model: nn.Module, vocabulary: int, length: int, **more: Any) -> Model:
    return model, (_ids(vocabulary, length),), {"use_cache": False, "logits_to_keep": 1, **more}


def gpt2(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, heads, depth, vocabulary = (768, 12, 12, 50257) if real else (64, 4, 2, 256)
    config = hf.GPT2Config(
        n_embd=width,
        n_head=heads,
        n_layer=layers or depth,
        vocab_size=vocabulary,
        n_positions=max(length, 4096),
        **_attn(attn),
    )
    return _causal(hf.GPT2LMHeadModel(config), vocabulary, length)


def gpt2_masked(real: bool, attn: str, length: int, layers: int | None) -> Model:
    model, args, kwargs = gpt2(real, attn, length, layers)
    return model, args, {**kwargs, "attention_mask": _padding(length)}


def _llama_like(real: bool, attn: str, length: int, layers: int | None) -> dict[str, Any]:
    sizes: tuple[int, ...] = (2048, 5632, 32, 4, 4, 32000) if real else (64, 176, 8, 2, 2, 256)
    width, inner, heads, kv_heads, depth, vocabulary = sizes
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers or depth,
        "vocab_size": vocabulary,
        "max_position_embeddings": max(length, 4096),
        **_attn(attn),
    }


def llama(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = hf.LlamaConfig(**_llama_like(real, attn, length, layers))
    return _causal(hf.LlamaForCausalLM(config), config.vocab_size, length)


def qwen3(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = hf.Qwen3Config(**_llama_like(real, attn, length, layers), head_dim=64 if real else 16)
    return _causal(hf.Qwen3ForCausalLM(config), config.vocab_size, length)


def mixtral(
    real: bool, attn: str, length: int, layers: int | None, experts: str = "batched_mm"
) -> Model:
    """The default expert loop reads which experts were hit, a shape that depends on data, and
    `torch.export` refuses it; transformers' `batched_mm` and `grouped_mm` compute the same.
    """
    sizes = _llama_like(real, attn, length, layers)
    # Expert weights are gathered for every token: a full-width expert would not fit in memory.
    sizes |= (
        {"hidden_size": 512, "intermediate_size": 256, "num_attention_heads": 8} if real else {}
    )
    sizes |= {"num_key_value_heads": 2, "num_hidden_layers": layers or 2}
    config = hf.MixtralConfig(**sizes, num_local_experts=8 if real else 4, num_experts_per_tok=2)
    model = hf.MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    return _causal(model, config.vocab_size, length)


def mixtral_grouped(real: bool, attn: str, length: int, layers: int | None) -> Model:
    return mixtral(real, attn, length, layers, "grouped_mm")


def bert(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, heads, depth, vocabulary = (768, 12, 12, 30522) if real else (64, 4, 2, 256)
    config = hf.BertConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_hidden_layers=layers or depth,
        vocab_size=vocabulary,
        max_position_embeddings=max(length, 4096),
        **_attn(attn),
    )
    return hf.BertModel(config), (_ids(vocabulary, length),), {}


def bert_masked(real: bool, attn: str, length: int, layers: int | None) -> Model:
    model, args, kwargs = bert(real, attn, length, layers)
    return model, args, {**kwargs, "attention_mask": _padding(length)}


def _t5_config(real: bool, attn: str, layers: int | None) -> hf.T5Config:
    width, heads, depth, vocabulary = (512, 8, 6, 32128) if real else (64, 4, 2, 256)
    return hf.T5Config(
        d_model=width,
        num_heads=heads,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers or depth,
        vocab_size=vocabulary,
        **_attn(attn),
    )


def t5_encoder(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = _t5_config(real, attn, layers)
    return hf.T5EncoderModel(config), (_ids(config.vocab_size, length),), {}


def t5(real: bool, attn: str, length: int, layers: int | None) -> Model:
    config = _t5_config(real, attn, layers)
    kwargs = {
        "decoder_input_ids": _ids(config.vocab_size, max(2, length // 2)),
        "use_cache": False,
    }
    return hf.T5Model(config), (_ids(config.vocab_size, length),), kwargs


def esm2(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, heads, depth = (640, 20, 6) if real else (64, 4, 2)
    config = hf.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers or depth,
        intermediate_size=4 * width,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        max_position_embeddings=max(length, 4098),
        **_attn(attn),
    )
    ids = torch.randint(5, 24, (1, length))
    return hf.EsmModel(config), (ids,), {"attention_mask": torch.ones_like(ids)}


def esmfold(real: bool, attn: str, length: int, layers: int | None) -> Model:
    """The trunk block of ESMFold: 1024 wide sequence, 128 wide pairs, as released.

    `kwargs["chunk_size"]` is the model's own knob for chunking its triangle attention.
    """
    sequence, pair = (1024, 128) if real else (64, 32)
    config = TrunkConfig(
        sequence_state_dim=sequence,
        pairwise_state_dim=pair,
        sequence_head_width=32 if real else 16,
        pairwise_head_width=32 if real else 8,
    )
    block = EsmFoldTriangularSelfAttentionBlock(config)
    states = torch.randn(1, length, sequence), torch.randn(1, length, length, pair)
    return block, states, {}


def esmfold_dynamic(length: Any) -> Any:
    """`dynamic_shapes` for the trunk block: the residues are three dims."""
    return {1: length}, {1: length, 2: length}


def mamba(real: bool, attn: str, length: int, layers: int | None) -> Model:
    width, depth, vocabulary = (256, 4, 1000) if real else (32, 2, 256)
    config = hf.MambaConfig(
        hidden_size=width,
        num_hidden_layers=layers or depth,
        vocab_size=vocabulary,
        state_size=16 if real else 4,
    )
    return _causal(hf.MambaForCausalLM(config), vocabulary, length)
