"""Small causal LMs with seeded random weights, one for each family."""

import torch
import transformers as hf

NO_TOKENS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
BASE = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    **NO_TOKENS,
)
WINDOW = dict(sliding_window=7)
MOE = dict(num_experts_per_tok=2)
GEMMA = dict(head_dim=32, query_pre_attn_scalar=24, **WINDOW)
GPT2 = dict(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=512, **NO_TOKENS)

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**BASE),
    "mistral": lambda: hf.MistralConfig(**BASE, head_dim=16, **WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**BASE),
    "qwen3": lambda: hf.Qwen3Config(**BASE, head_dim=32),
    "gemma2": lambda: hf.Gemma2Config(**BASE, **GEMMA),
    "gemma3": lambda: hf.Gemma3TextConfig(**BASE, **GEMMA, sliding_window_pattern=2),
    "phi": lambda: hf.PhiConfig(**BASE),
    "phi3": lambda: hf.Phi3Config(**BASE),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "mixtral": lambda: hf.MixtralConfig(**BASE, num_local_experts=4, **MOE),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(
        **BASE, num_experts=6, moe_intermediate_size=48, shared_expert_intermediate_size=64, **MOE
    ),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(
        **BASE, num_experts=6, moe_intermediate_size=48, head_dim=32, **MOE
    ),
}


def causal_lm(name: str, dtype: torch.dtype = torch.float32, **changes):
    """A model of the family whose logits are spread as a trained one's."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(3)
    return model.to(dtype)
