"""Run a Llama over a prompt of 128 K tokens within a byte budget, and predict the next token.

    python examples/prefill_long.py                              131072 tokens in 1 GiB
    python examples/prefill_long.py --tokens 16384 --memory 128MiB

The model has the layers of Llama 3 at a small width (random weights), so that this takes minutes
on a laptop; for a trained one, give a local folder to `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quire

MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--memory", default="1GiB", help="bytes above weights and inputs")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=896, num_attention_heads=8,
        num_key_value_heads=2, num_hidden_layers=options.layers,
        max_position_embeddings=options.tokens, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(config.vocab_size, (1, options.tokens))
    more = {"use_cache": False, "logits_to_keep": 1}

    try:
        small = quire.chunk(model, (prompt,), more, memory=options.memory)
    except quire.BudgetError as error:
        print(error, file=sys.stderr)
        return 1
    plan, proof = small.plan, small.certificate
    assert proof is not None
    print(f"peak {plan.baseline_bytes / MIB:.0f} MiB, in parts {plan.peak_bytes / MIB:.0f} MiB")
    print(f"equal for all inputs: {proof.verdict}")

    started = time.perf_counter()
    with torch.inference_mode():
        logits = small(prompt, **more).logits
    seconds = time.perf_counter() - started
    print(f"{options.tokens} tokens in {seconds:.1f} s, then token {logits[0, -1].argmax().item()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
