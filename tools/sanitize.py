"""A decode kernel as a program of its own under GCC's sanitizers.

    python tools/sanitize.py [address thread undefined]

The emitted source and the runtime headers are compiled into an executable without Python, fed
zeros for weights and inputs, and run for some tokens on three threads. A report of a sanitizer
fails the run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from quire.capture.decode import capture_decode
from quire.capture.program import evaluate
from quire.kernel.compile import KernelPlan, compile_program
from quire.kernel.describe import weight_bytes
from quire.kernel.ir import BLOCKS
from quire.runtime.build import HEADERS, compiler

ROWS, LENGTH, TOKENS, WORKERS = 3, 300, 290, 3
SMALL = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip


def main_of(plan: KernelPlan) -> str:
    """A `main` that gives every slot memory of just its size, and calls the kernel."""
    env = {s.name: ROWS for s in plan.program.symbols}
    sizes: dict[str, int] = {}
    fills: list[str] = []
    slots: list[str] = []
    for row in plan.rendered.slots:
        for b in row:
            if b.role == "temp":
                slots.append(f"arena + {plan.arena.offsets[b.name]}")
                continue
            name = b.name if b.role == "state" else b.target
            if b.role == "state":
                sizes[name] = weight_bytes(b)
            else:
                count = b.dtype.itemsize
                for size in b.shape:
                    count *= evaluate(size, env)
                sizes[name] = count
            slots.append(f'held.at("{name}").get()')
    slot = [i.target for i in plan.program.users_inputs()][1]
    fills.append(f'auto* at = reinterpret_cast<std::int64_t*>(held.at("{slot}").get());')
    tables = "\n".join(f'  {{"{n}", {s}}},' for n, s in sizes.items())
    lines = "\n".join(f"    {s}," for s in slots)
    repeats = ", ".join(map(str, plan.rendered.repeats)) or "0"
    scratch = plan.rendered.scratch + 64
    return f"""
#include <map>
#include <cstdio>
int main() {{
  std::map<std::string, std::unique_ptr<char[]>> held;
  const std::map<std::string, std::size_t> sizes = {{
{tables}
  }};
  for (const auto& [name, size] : sizes) held[name] = std::make_unique<char[]>(size);
  auto arena_ = std::make_unique<char[]>({plan.arena.size} + 64);
  char* arena = arena_.get() + (64 - std::uintptr_t(arena_.get()) % 64) % 64;
  auto scratch_ = std::make_unique<char[]>({scratch} * {WORKERS} + 64);
  void* slots[] = {{
{lines}
  }};
  const std::int64_t lengths[] = {{{ROWS}}}, repeats[] = {{{repeats}}};
  void* team = quire_team({WORKERS}, 60);
  {fills[0]}
  for (int t = 0; t < {TOKENS}; ++t) {{
    for (int b = 0; b < {ROWS}; ++b) at[b] = t + b;
    if (quire_run(team, slots, lengths, repeats, scratch_.get(), {scratch})) return 1;
  }}
  quire_team_free(team);
  std::puts("ran {TOKENS} tokens");
}}
"""


def run(config: object, kinds: list[str], scheme: str = "") -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if scheme == "lossless" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    step = capture_decode(model, LENGTH, ROWS)
    plan = compile_program(
        step.program, scheme, "sanitized", {s.name: ROWS for s in step.program.symbols}
    )
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "kernel.cpp", Path(folder) / "kernel"
        source.write_text(plan.source + main_of(plan))
        for kind in kinds:
            flags = ["-std=c++20", "-O1", "-g", "-pthread", "-march=native", f"-I{HEADERS}"]
            flags += [f"-fsanitize={kind}", "-fno-sanitize-recover=all"]
            subprocess.run([compiler(), *flags, str(source), "-o", str(program)], check=True)
            done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
            what = " ".join(filter(None, (type(config).__name__, scheme, kind)))
            print(f"{what}: {done.stdout.strip() or done.stderr[:3000]}")
            if done.returncode:
                raise SystemExit(f"{kind}: a report, or status {done.returncode}")


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["address", "thread", "undefined"]
    for scheme in ("", *BLOCKS):
        run(LlamaConfig(**SMALL), wanted, scheme)
    run(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2), wanted)
