"""Each family of causal LMs at its real width and two layers: right, and the same every time.

    python -m benchmarks.families llama qwen3 gpt2
    python -m benchmarks.families --all

For each family, in a process of its own, with seeded random float32 weights: logits over 32
tokens of a decoding kernel against eager float32 and, where memory allows, float64, and what the
certificate's bound, carried through all steps, allows where they differ most; greedy tokens of
`fast.generate` against Hugging Face's over 200 steps; logits of 1, 2 and 3 threads and of a second
run, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
import transformers as hf

from benchmarks import workers
from benchmarks.record import save, table
from quire.fusing import fuse
from quire.kernel.compile import KernelPlan
from quire.runtime.native import NativeKernel
from quire.verify.first_order import bounds

QUIET: dict[str, Any] = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)


def _config(name: str, **sizes: Any) -> Any:
    return getattr(hf, name)(**{"num_hidden_layers": 2, **QUIET, **sizes})


# The published sizes of each model, but for the number of layers.
CONFIGS = {
    "llama": lambda: _config(
        "LlamaConfig", vocab_size=128256, hidden_size=2048, intermediate_size=8192,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "mistral": lambda: _config(
        "MistralConfig", vocab_size=32000, hidden_size=4096, intermediate_size=14336,
        num_attention_heads=32, num_key_value_heads=8, sliding_window=4096,
    ),
    "qwen2": lambda: _config(
        "Qwen2Config", vocab_size=151936, hidden_size=896, intermediate_size=4864,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "qwen3": lambda: _config(
        "Qwen3Config", vocab_size=151936, hidden_size=1024, intermediate_size=3072,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "gemma2": lambda: _config(
        "Gemma2Config", vocab_size=256000, hidden_size=2304, intermediate_size=9216,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256,
    ),
    "gemma3": lambda: _config(
        "Gemma3TextConfig", vocab_size=262144, hidden_size=1152, intermediate_size=6912,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": lambda: _config(
        "PhiConfig", vocab_size=51200, hidden_size=2560, intermediate_size=10240,
        num_attention_heads=32,
    ),
    "phi3": lambda: _config(
        "Phi3Config", vocab_size=32064, hidden_size=3072, intermediate_size=8192,
        num_attention_heads=32, num_key_value_heads=32,
    ),
    "gpt2": lambda: hf.GPT2Config(n_layer=2, **QUIET),
    "mixtral": lambda: _config(
        "MixtralConfig", vocab_size=32000, hidden_size=4096, intermediate_size=14336,
        num_attention_heads=32, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    ),
    "qwen2-moe": lambda: _config(
        "Qwen2MoeConfig", vocab_size=151936, hidden_size=2048, intermediate_size=5632,
        num_attention_heads=16, num_key_value_heads=16, num_experts=60, num_experts_per_tok=4,
        moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
    ),
}  # fmt: skip

TOKENS, STEPS, PLACES, DOUBLE = 32, 200, 3, 1 << 30
"""Positions whose logits are compared; greedy steps; logits that are held against the bound;
parameters up to which float64 is run."""


def _logits(fast: Any, kernel: NativeKernel, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Of every position, one kernel call each, and the keys and values that they wrote."""
    before, fast.kernel = fast.kernel, kernel
    cache = fast.new_cache(ids.shape[0])
    cache.lengths = torch.zeros(ids.shape[0], dtype=torch.long)
    found = [fast(ids[:, t : t + 1], past_key_values=cache).logits[:, 0] for t in range(TOKENS)]
    fast.kernel = before
    keys, values = zip(*cache.tensors(), strict=True)
    return torch.stack(found, 1), (*keys, *values)


def _bound(plan: KernelPlan, ids: torch.Tensor, caches: Any, off: torch.Tensor) -> dict[str, float]:
    """What `off`, the differences `[rows, tokens, vocabulary]` between two orders of the same sums,
    may be where it is largest: twice the bound of one. `share_of_bound` is the largest of a few
    places of that row and step."""
    row, step, _ = torch.unravel_index(off.argmax(), off.shape)
    row, step = int(row), int(step)
    own = [cache[row : row + 1] for cache in caches]
    start = torch.zeros(1, dtype=torch.long)
    calls = [
        [ids[row : row + 1, t : t + 1], torch.tensor([t]), start, *own] for t in range(step + 1)
    ]
    largest = off[row, step].topk(PLACES)
    places = [(0, 0, int(i)) for i in largest.indices]
    *before, last = calls
    room = [2 * b for b in bounds(plan.program, last, places, before=before)]
    shares = [float(o) / r for o, r in zip(largest.values, room, strict=True)]
    return {"bound": room[0], "share_of_bound": max(shares), "step": step}


def measure(item: workers.Item) -> workers.Item:
    name = item["family"]
    torch.set_num_threads(item["threads"])
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
    started = time.perf_counter()
    fast = fuse(model, max_length=256, max_batch=2)
    seconds = time.perf_counter() - started
    ids = torch.randint(model.config.vocab_size, (2, TOKENS))
    plan = fast.kernel.plan
    got, caches = _logits(fast, NativeKernel(plan, threads=2), ids)
    again = (_logits(fast, NativeKernel(plan, threads=n), ids)[0] for n in (1, 2, 3))
    same = [torch.equal(got, logits) for logits in again]
    with torch.no_grad():
        eager = model(ids, use_cache=False).logits
    count = sum(p.numel() for p in model.parameters())
    exact = None
    if count <= DOUBLE:
        config = copy.deepcopy(model.config)
        config._experts_implementation = "batched_mm"  # the default has no float64
        double: Any = type(model)(config)
        double.load_state_dict(model.state_dict())
        with torch.no_grad():
            exact = double.double().eval()(ids, use_cache=False).logits
        del double
    prompt = dict(
        input_ids=ids[:1, :8],
        attention_mask=torch.ones(1, 8, dtype=torch.long),
        max_new_tokens=STEPS,
        do_sample=False,
    )
    ours, theirs = fast.generate(**prompt), model.generate(**prompt)

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).abs().max())

    return {
        "parameters": count,
        "fuse_seconds": seconds,
        "largest_logit": float(eager.abs().max()),
        "difference": off(got, eager),
        "error": None if exact is None else off(got, exact),
        "eager_error": None if exact is None else off(eager, exact),
        **_bound(plan, ids, caches, (got.double() - eager.double()).abs()),
        "greedy_steps": STEPS,
        "greedy_equal": bool(torch.equal(ours, theirs)),
        "bit_identical": all(same),
    }


HEAD = (
    "family", "parameters", "difference from eager", "bound", "error, float64", "eager's own",
    "200 greedy tokens", "same bits, 1, 2, 3 threads",
)  # fmt: skip


def summary(row: dict[str, Any]) -> list[object]:
    def small(value: float | None) -> str:
        return "–" if value is None else f"{value / row['largest_logit']:.1e}"

    if row.get("outcome") == "error":
        return [row["family"], row["error"], *["–"] * 6]
    exceeded = " EXCEEDED" if row.get("share_of_bound", 0) > 1 else ""
    return [
        row["family"], f"{row['parameters'] / 1e6:.0f} M", small(row["difference"]),
        small(row.get("bound")) + exceeded, small(row["error"]), small(row["eager_error"]),
        "equal" if row["greedy_equal"] else "DIFFERENT", "yes" if row["bit_identical"] else "NO",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="family", help=", ".join(CONFIGS))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--threads", type=int, default=2, help="of eager")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        workers.serve(given.worker, measure)
        return
    rows = []
    names = list(CONFIGS) if given.all else given.families
    unknown = sorted(set(names) - set(CONFIGS))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}: there are {', '.join(CONFIGS)}")
    items = [{"key": name, "family": name, "threads": given.threads} for name in names]
    for row in workers.answers("benchmarks.families", items):
        rows.append(row)
        print(table(HEAD, [summary(rows[-1])]).splitlines()[-1], flush=True)
    save("families", rows, {"device": "cpu", "dtype": "float32", "tokens": TOKENS})
    print(table(HEAD, [summary(row) for row in rows]))


if __name__ == "__main__":
    main()
