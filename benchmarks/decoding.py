"""A decode step against the machine's bandwidth and against other engines, interleaved in one run.

    python -m benchmarks.decoding 135m --weights bfloat16 int8 int4
    python -m benchmarks.decoding 135m --batch 4 16 32
    python -m benchmarks.decoding 135m --positions 16 512 1024 2048 4000 --engines quire
    python -m benchmarks.decoding 1.1b --weights bfloat16 int8 int4

Seeded random weights, the same for all. Each engine is a process of its own that is stopped while
another runs. A round reads as many bytes as the weights take (a sum with all threads: the read part
of STREAM, in large pages where the system has them), then takes steps of each engine. All do so
twice, and the second counts; engines take turns in being first (who is finds an idle machine, and
is some percent slower), and so do positions; the figures are medians over rounds. `share` is
the bytes of weights and live keys and values a second over that bandwidth. `off` is the largest
difference of the logits after 16 tokens from float32, over the largest logit.

llama.cpp, ONNX Runtime and OpenVINO run under the Python of QUIRE_PEERS (default: this one), in an
environment such as

    python -m venv peers
    peers/bin/pip install numpy onnx onnxruntime openvino gguf llama-cpp-python

An engine that cannot be started is named with its error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.record import save, table
from quire.runtime import pages

IDLE = 0.1
"""Seconds until torch's threads, which spin while they wait for work, leave the cores to others."""
PEERS = Path(__file__).parent / "peers"
ANSWER = "ANSWER "
QUIET: dict[str, Any] = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "135m": dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "1.1b": dict(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4,
    ),
}  # fmt: skip
ENGINES = {
    "quire": "torch_peer.py",
    "eager": "torch_peer.py",
    "torch.compile": "torch_peer.py",
    "llama.cpp": "llama_cpp_peer.py",
    "onnxruntime": "onnx_runtime_peer.py",
    "openvino": "openvino_peer.py",
}
CHECK = list(range(3, 19))


@attrs.define(eq=False)
class Engine:
    """A contender's process; stopped but for the time it is asked something."""

    name: str
    process: subprocess.Popen[str]
    log: Any
    facts: dict[str, Any] = attrs.Factory(dict)
    error: str = ""

    def ask(self, question: dict[str, Any] | None) -> dict[str, Any]:
        """The answer to `question` (None: to being started); {} once it failed."""
        if self.error:
            return {}
        assert self.process.stdin is not None and self.process.stdout is not None
        if question is not None:
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.stdin.write(json.dumps(question) + "\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # the end of its output says why
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                self.process.send_signal(signal.SIGSTOP)
                return json.loads(line.removeprefix(ANSWER))
        self.log.seek(0)
        said = [x for x in self.log.read().splitlines() if x.strip()]
        self.error = (said or [f"status {self.process.wait()}"])[-1][:300]
        return {}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def start(name: str, folder: Path, weights: str, threads: int, length: int, batch: int) -> Engine:
    own = ENGINES[name] == "torch_peer.py"
    python = sys.executable if own else os.environ.get("QUIRE_PEERS", sys.executable)
    # Only Quire holds bf16 weights in another way.
    format = "bfloat16" if weights == "lossless" and name != "quire" else weights
    words = [str(folder), format, str(threads), str(length), str(batch)]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (the engine closes it)
    process = subprocess.Popen(
        [python, "-W", "ignore", str(PEERS / ENGINES[name]), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {"PEER": name, "OMP_NUM_THREADS": str(threads)},
    )
    engine = Engine(name, process, log)
    engine.facts = engine.ask(None)
    print(f"  {name} {weights}: {engine.error or 'ready'}", flush=True)
    return engine


def model_folder(shape: str, length: int, root: Path) -> tuple[Path, torch.Tensor]:
    """The weights as transformers saves them, and float32's logits after CHECK."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], **QUIET, max_position_embeddings=length)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    folder = root / shape
    model.save_pretrained(folder)
    with torch.inference_mode():
        return folder, model.float()(torch.tensor([CHECK])).logits[0, -1]


def read_seconds(held: torch.Tensor) -> float:
    held.sum()
    begun = time.perf_counter()
    held.sum()
    seconds = time.perf_counter() - begun
    time.sleep(IDLE)
    return seconds


def measure(
    shape: str, weights: str, folder: Path, want: torch.Tensor, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each batch and position."""
    length, most = max(given.positions) + 16, max(given.batch)
    engines = [start(e, folder, weights, given.threads, length, most) for e in given.engines]
    try:
        first = next((e for e in engines if e.name == "quire" and not e.error), None)
        if first is None:
            raise SystemExit(f"quire did not start: {engines[0].error}")
        nbytes, per_token = first.facts["weight_bytes"], first.facts["cache_bytes"]
        held = pages.allocate(nbytes // 4 * 4).view(torch.float32).fill_(1)
        off = {}
        for engine in engines:
            got = engine.ask({"ids": CHECK}).get("logits")
            if got is not None:
                off[engine.name] = float((torch.tensor(got) - want).abs().max() / want.abs().max())
        rows = []
        for batch in given.batch:
            samples: dict[int, dict[str, list[float]]] = {
                p: {e.name: [] for e in engines} for p in given.positions
            }
            reads: dict[int, list[float]] = {p: [] for p in given.positions}
            for turn, position in itertools.product(range(given.rounds), given.positions):
                reads[position].append(read_seconds(held))
                ahead = turn % len(engines)
                for engine in engines[ahead:] + engines[:ahead]:
                    asked = {"batch": batch, "position": position, "steps": 2}
                    samples[position][engine.name] += engine.ask(asked).get("samples", [])[-1:]
            for position in given.positions:
                rows.append(
                    {
                        "key": f"{shape} {weights} batch {batch} position {position}",
                        "shape": shape,
                        "weights": weights,
                        "batch": batch,
                        "position": position,
                        "weight_bytes": nbytes,
                        "cache_bytes": per_token * batch * (position + 1),
                        "read_samples": reads[position],
                        "samples": samples[position],
                        "off": off,
                        "engines": {
                            e.name: {"error": e.error} if e.error else e.facts for e in engines
                        },
                    }
                )
                for line in summary(rows[-1]):
                    print("| " + " | ".join(map(str, line)) + " |", flush=True)
        return rows
    finally:
        for engine in engines:
            engine.end()


HEAD = ("shape", "weights", "batch", "position", "engine", "ms", "tokens/s", "share", "×", "off")


def summary(row: dict[str, Any]) -> list[list[object]]:
    """A line for each engine; × is its time over Quire's."""
    rate = row["weight_bytes"] / statistics.median(row["read_samples"])
    mine = statistics.median(row["samples"]["quire"])
    lines: list[list[object]] = []
    for name, samples in row["samples"].items():
        where = [row["shape"], row["weights"], row["batch"], row["position"], name]
        if not samples:
            lines.append([*where, row["engines"][name]["error"], *["–"] * 4])
            continue
        middle = statistics.median(samples)
        share = (row["weight_bytes"] + row["cache_bytes"]) / middle / rate
        lines.append([
            *where, f"{middle * 1e3:.2f}", f"{row['batch'] / middle:.1f}",
            f"{share:.0%}" if name == "quire" else "–", f"{middle / mine:.2f}",
            f"{row['off'][name]:.1e}" if name in row["off"] else "–",
        ])  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--weights", nargs="+", default=["bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--positions", nargs="+", type=int, default=[128])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder, want = model_folder(given.shape, max(given.positions) + 16, Path(root))
        for weights in given.weights:
            rows += measure(given.shape, weights, folder, want, given)
    if not given.dry:
        save("decoding", rows, {"device": "cpu", "threads": given.threads})
    print(table(HEAD, [line for row in rows for line in summary(row)]))


if __name__ == "__main__":
    main()
