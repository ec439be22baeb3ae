"""The emitted source of decode kernels, run with every access watched, and lies told to it.

    python tools/watch_kernel.py                     the kernels of a few models, on 3 workers
    python tools/watch_kernel.py --mutants 200       and wrong ones: each has to be found out

The source is a template over its machine; here that machine is `rt/watch.hpp`, which checks for
each byte that no two workers race between two barriers, that what is read was written before and as
the same buffer, that nothing lies outside of its buffer, and that only weights are prefetched. The
logits of some tokens, rows at different positions, are compared with the model's own.
This is a run at given sizes, not a proof for all: lies that change nothing at these (a share wider
than the work there is) are handed to the prover, which has to refuse them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MixtralConfig

from quire.capture.decode import DecodeStep, capture_decode
from quire.capture.program import evaluate
from quire.fusing import tables_of
from quire.kernel.arena import lives
from quire.kernel.compile import KernelPlan, compile_program
from quire.kernel.ir import Buffer
from quire.runtime import build
from quire.runtime.pack import packed
from quire.verify.kernel.prove import prove_kernel

ROWS, LENGTH, TOKENS, WORKERS = 2, 140, 3, 3
SMALL: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL),
    "gemma2": lambda: Gemma2Config(**SMALL, head_dim=16, sliding_window=9),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
}
STARTS = torch.tensor([0, 2])
FIRST = torch.tensor([131, 127])
"""Slots before the first token: key blocks of 128 begin within the run."""


@attrs.frozen(eq=False)
class Case:
    """A kernel, the tables it runs with, the bytes it is fed, and the logits it should give."""

    name: str
    plan: KernelPlan
    buffers: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    slots: tuple[int, ...]
    feed: bytes
    want: torch.Tensor


def case_of(name: str) -> Case:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    step = capture_decode(model, LENGTH, ROWS)
    longest = {s.name: ROWS for s in step.program.symbols}
    plan = compile_program(step.program, "", name, longest)
    ids = torch.randint(1, 64, (ROWS, LENGTH))
    env: dict[Any, int] = dict(longest)
    found: dict[tuple[str, str], int] = {}
    buffers: list[str] = []
    blocks: list[int] = [plan.arena.size]
    weights: list[torch.Tensor] = []
    slots: list[int] = []
    for row in plan.rendered.slots:
        for b in row:
            key = (b.role, b.name if b.role in ("temp", "state") else b.target)
            if key not in found:
                found[key] = len(buffers)
                buffers.append(_buffer(b, plan, env, blocks, weights))
            slots.append(found[key])
    want, caches = _by_model(model, step, ids)
    inputs = [i.target for i in step.program.users_inputs()]
    held = dict(zip(inputs[3:], caches, strict=True))
    parts = [_bytes(w) for w in weights]
    for role, target in found:
        if role == "input" and target in held:
            parts.append(_bytes(held[target]))
    for t in range(TOKENS):
        now = {inputs[0]: _tokens(ids, t), inputs[1]: FIRST + t, inputs[2]: STARTS}
        parts += [_bytes(now[x]) for role, x in found if role == "input" and x in now]
    fed = [f"{found[('input', x)]}" for r, x in found if r == "input" and x in inputs[:3]]
    first = [str(k) for k, b in enumerate(buffers) if "Role::weight" in b]
    first += [str(found[("input", x)]) for r, x in found if r == "input" and x in held]
    buffers.append(", ".join(first))
    buffers.append(", ".join(fed))
    names = tuple(target for _, target in found)
    return Case(
        name, plan, tuple(buffers), names, tuple(blocks), tuple(slots), b"".join(parts), want
    )


def _buffer(
    b: Buffer, plan: KernelPlan, env: Mapping[Any, int], blocks: list[int], weights: list[Any]
) -> str:
    """The C++ initializer of a buffer; its block of memory is added to `blocks`."""
    if b.role == "state":
        weight = packed(plan.program.state[b.target].detach(), b)
        reach = 1 + sum((s - 1) * t for s, t in zip(weight.shape, weight.stride(), strict=True))
        weights.append(weight.as_strided((reach,), (1,)))
        size, block, offset, role = reach * weight.element_size(), len(blocks), 0, "weight"
    else:
        size = b.dtype.itemsize
        for s in b.shape:
            size *= evaluate(s, env)
        block, offset, role = len(blocks), 0, b.role
        if b.role == "temp":
            block, offset = 0, plan.arena.offsets[b.name]
    if block:
        blocks.append(size)
    name = b.target if b.role in ("input", "output") else b.name
    return f'{{"{name}", quire::Role::{role}, {block}, {offset}, {size}}}'


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _tokens(ids: torch.Tensor, t: int) -> torch.Tensor:
    return torch.stack([ids[b, FIRST[b] + t] for b in range(ROWS)])[:, None]


def _by_model(
    model: Any, step: DecodeStep, ids: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model's own logits [TOKENS, ROWS, vocabulary], and the caches before the first."""
    keys = [torch.zeros(ROWS, *k) for k in step.key_shapes]
    values = [torch.zeros(ROWS, *v) for v in step.value_shapes]
    want = torch.zeros(TOKENS, ROWS, model.config.vocab_size)
    with torch.no_grad():
        for b in range(ROWS):
            a, n = int(STARTS[b]), int(FIRST[b])
            past = model(ids[b : b + 1, a:n], use_cache=True).past_key_values
            for k, layer in enumerate(past.layers):
                for into, have in ((keys[k], layer.keys), (values[k], layer.values)):
                    into[b, :, n - have.shape[2] : n] = have[0]
            want[:, b] = model(ids[b : b + 1, a : n + TOKENS], use_cache=False).logits[0, -TOKENS:]
    return want, [*keys, *values]


MAIN = """
int main(int, char** argv) {{
  using namespace quire;
  Watcher watcher({{{buffers}}}, {{{sizes}}}, {workers});
  const int slots[] = {{{slots}}};
  const index_t lengths[] = {{{rows}}}, repeats[] = {{{repeats}}};
  std::FILE* feed = std::fopen(argv[1], "rb");
  auto read = [&](int b) {{
    if (std::fread(watcher.data(b), 1, watcher.buffer(b).bytes, feed) !=
        std::size_t(watcher.buffer(b).bytes)) std::abort();
  }};
  for (const int b : {{{first}}}) read(b);
  const auto team = Team::start({workers}, 60);
  std::vector<char> scratch({scratch} * {workers} + 64);
  std::FILE* out = std::fopen(argv[2], "wb");
  for (int t = 0; t < {tokens}; ++t) {{
    for (const int b : {{{fed}}}) read(b);
    watcher.begin();
    std::vector<std::thread> threads;
    for (int w = 0; w < {workers}; ++w)
      threads.emplace_back([&, w] {{
        Watch q(*team, w, watcher, slots, lengths, repeats, scratch.data() + w * {scratch},
                {scratch});
        step(q);
      }});
    for (auto& thread : threads) thread.join();
    watcher.end();
    std::fwrite(watcher.data({logits}), 1, watcher.buffer({logits}).bytes, out);
  }}
  std::fclose(out);
  for (const auto& [what, times] : watcher.found())
    std::printf("%s (%d bytes)\\n", what.c_str(), times);
  team->stop();
}}
"""


def program(case: Case, body: str, buffers: tuple[str, ...]) -> str:
    """A translation unit that runs `body` watched."""
    *listed, first, fed = buffers
    logits = next(k for k, b in enumerate(listed) if "Role::output" in b)
    text = body.replace('#include "native.hpp"', '#include "watch.hpp"')
    text = text.replace('#include "entry.hpp"', "#include <cstdio>")
    return text + MAIN.format(
        buffers=", ".join(listed), sizes=", ".join(map(str, case.sizes)), workers=WORKERS,
        slots=", ".join(map(str, case.slots)), rows=ROWS, scratch=case.plan.rendered.scratch + 64,
        repeats=", ".join(map(str, case.plan.rendered.repeats)) or "0", tokens=TOKENS,
        first=first, fed=fed, logits=logits,
    )  # fmt: skip


@attrs.frozen
class Run:
    found: tuple[str, ...]
    error: float
    """The largest difference of the logits over the largest logit; inf if it did not end."""


def run(case: Case, folder: Path, body: str, buffers: tuple[str, ...] | None = None) -> Run:
    """Compile and run `body` with the tables of `case`."""
    source, made = folder / "watched.cpp", folder / "watched"
    source.write_text(program(case, body, buffers or case.buffers))
    flags = ["-std=c++20", "-O1", "-w", "-pthread", "-march=native", f"-I{build.HEADERS}"]
    compiled = subprocess.run(
        [build.compiler(), *flags, str(source), "-o", str(made)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if compiled.returncode:
        return Run(("does not compile: " + compiled.stderr[:2000],), float("inf"))
    feed, out = folder / "feed", folder / "out"
    feed.write_bytes(case.feed)
    out.write_bytes(b"")
    try:
        done = subprocess.run(
            [str(made), str(feed), str(out)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Run(("does not end",), float("inf"))
    found = done.stdout.splitlines() + ([f"status {done.returncode}"] if done.returncode else [])
    raw = out.read_bytes()
    if len(raw) != case.want.numel() * 4:
        return Run((*found, "no logits"), float("inf"))
    got = torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(case.want.shape)
    error = float((got - case.want).abs().max() / case.want.abs().max())
    return Run(tuple(found), float("inf") if math.isnan(error) else error)


# --- lies -------------------------------------------------------------------------------------


def nth(text: str, pattern: str, n: int, new: Callable[[re.Match[str]], str]) -> str | None:
    spots = list(re.finditer(pattern, text))
    if not spots:
        return None
    spot = spots[n % len(spots)]
    made = text[: spot.start()] + new(spot) + text[spot.end() :]
    return None if made == text else made


def _bumped(m: re.Match[str]) -> str:
    return m[1] + str(int(m[2]) + 1) + m[3]


def _swapped(text: str, n: int) -> str | None:
    """Two pointers of one type and phase change places."""
    spots = list(re.finditer(r"const auto s\d+ = q\.template array<(.*?)>\((\d+)\);", text))
    pairs = [
        (a, b)
        for a, b in itertools.pairwise(spots)
        if a[1] == b[1] and b.start() - a.end() < 4 and int(b[2]) == int(a[2]) + 1
    ]
    if not pairs:
        return None
    a, b = pairs[n % len(pairs)]
    return text[: a.start(2)] + b[2] + text[a.end(2) : b.start(2)] + a[2] + text[b.end(2) :]


LIES: dict[str, Callable[[str, int], str | None]] = {
    "dropped barrier": lambda s, n: nth(s, r" q\.wait\(\);", n, lambda m: ""),
    "wrong stride": lambda s, n: nth(s, r"((?<!\(0\)) \* )(\d+)(\))", n, _bumped),
    "bound too far": lambda s, n: nth(s, r"(q\.(?:each|sum|max)\()(\d+)(,)", n, _bumped),
    "bound too near": lambda s, n: nth(
        s, r"(q\.(?:each|sum|max)\()(\d+)(,)", n, lambda m: f"{m[1]}{int(m[2]) - 1}{m[3]}"
    ),
    "shorter product": lambda s, n: nth(
        s, r"(q\.dot(?:_bf16)?\(.*, )(\d+)(\);)", n, lambda m: f"{m[1]}{int(m[2]) - 16}{m[3]}"
    ),
    "swapped pointer": _swapped,
    "missing scale": lambda s, n: nth(s, r" \* real\(0\.\d+f\)", n, lambda m: ""),
    # Not the guard of a fetch: to fetch no bytes changes nothing.
    "< for <=": lambda s, n: nth(
        s, r" (<=|<) (?!\w+\.hi\) q\.prefetch)", n, lambda m: " < " if m[1] == "<=" else " <= "
    ),
    "minus for plus": lambda s, n: nth(s, r"(\)) \+ (q\.load)", n, lambda m: f"{m[1]} - {m[2]}"),
    "share too wide": lambda s, n: nth(s, r"(q\.share\(\d+, \d+, )(\d+)(, \d+, \d+\))", n, _bumped),
    "live keys too many": lambda s, n: nth(s, r"( \+ )(1)(\)\)\);)", n, _bumped),
    "stale prefetch": lambda s, n: nth(
        s, r"q\.prefetch\(s(\d+),", n, lambda m: "q.prefetch(q.template array<float>(0),"
    ),
}


def together(plan: KernelPlan) -> list[tuple[str, str]]:
    """Buffers of the arena that are in use at the same time."""
    found = lives(plan.phases, plan.most)
    return [
        (a.name, b.name)
        for a in found
        for b in found
        if a is not b and a.first <= b.last and b.first <= a.last
    ]


def overlapping(case: Case, n: int) -> tuple[str, ...] | None:
    """The tables with one buffer of the arena moved onto another that is in use with it."""
    pairs = together(case.plan)
    k, other = (case.names.index(x) for x in pairs[n % len(pairs)])
    offset = re.search(r"Role::temp, 0, (\d+)", case.buffers[other])
    assert offset is not None
    new = re.sub(r"(Role::temp, 0, )\d+", rf"\g<1>{offset[1]}", case.buffers[k])
    if new == case.buffers[k]:
        return None
    return (*case.buffers[:k], new, *case.buffers[k + 1 :])


BOUND = 2e-4
"""Of the largest logit: what float32 sums in another order may differ by here."""


def _proved(plan: KernelPlan, source: str) -> bool:
    found = prove_kernel(plan.program, source, tables_of(plan), witness=False)
    return found.verdict == "proved"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases = [case_of(name) for name in options.models]
        for case in cases:
            honest = run(case, folder, case.plan.source)
            print(f"{case.name}: {honest.found or 'nothing found'}, error {honest.error:.1e}")
            if honest.found or honest.error > BOUND:
                raise SystemExit(f"{case.name}: the honest kernel is refused")
        counts: Counter[str] = Counter()
        pick = random.Random(options.seed)
        kinds = [*LIES, "arena overlap"]
        told = 0
        while told < options.mutants:
            case, kind, n = pick.choice(cases), kinds[told % len(kinds)], pick.randrange(10_000)
            body, tables = case.plan.source, case.buffers
            if kind == "arena overlap":
                tables = overlapping(case, n) or ()
            else:
                body = LIES[kind](body, n) or ""
            if not body or not tables:
                kinds.remove(kind) if len(kinds) > 1 and n % 7 == 0 else None
                continue
            told += 1
            result = run(case, folder, body, tables)
            by = "watch" if result.found else "values" if result.error > BOUND else "nothing"
            if by == "nothing" and kind in LIES and not _proved(case.plan, body):
                by = "the prover"
            counts[f"{kind}: found by {by}"] += 1
            if by == "nothing":
                missed.append(f"{case.name} {kind} {n}")
                print(f"MISSED {missed[-1]}, error {result.error:.1e}", flush=True)
    for what, times in sorted(counts.items()):
        print(f"{times:4d} {what}")
    if missed:
        raise SystemExit(f"{len(missed)} of {options.mutants} lies were not found out")


if __name__ == "__main__":
    main()
