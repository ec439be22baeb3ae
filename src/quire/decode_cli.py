"""`quire run`: tokens as they come, then tokens a second and the share of memory bandwidth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import quire
from quire.capture.options import DTYPES
from quire.errors import QuireError
from quire.report.progress import Bar
from quire.runtime import pages


class _Timed(TextStreamer):
    """Prints text as it comes and keeps the time of each token."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        super().put(value)


def read_bandwidth(nbytes: int) -> float:
    """Bytes a second of a sum over `nbytes` of memory in large pages, on torch's threads: the best
    of three."""
    held = pages.allocate(max(1, nbytes // 4) * 4).view(torch.float32).fill_(1)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        held.sum()
        best = max(best, held.numel() * 4 / (time.perf_counter() - started))
    return best


def stream(
    folder: Path,
    prompt: str,
    max_new_tokens: int,
    max_length: int,
    weights: str | None,
    dtype: str | None,
    sample: bool,
    threads: int | None,
    out: Console,
    err: Console,
) -> None:
    if not folder.is_dir():
        raise QuireError("no such folder", where=str(folder), fix="check the path")
    if dtype not in DTYPES:
        raise QuireError(f"--dtype {dtype}", allowed=", ".join(DTYPES))
    with Bar(err) as bar:
        bar.step("loading the model", 0, 0)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        except (OSError, ValueError) as error:
            raise QuireError(
                f"not a causal LM with a tokenizer: {str(error).splitlines()[0]}",
                where=str(folder),
                fix="give a folder written by save_pretrained, tokenizer included",
            ) from error
        fast = quire.fuse(
            model,
            max_length=max_length,
            max_batch=1,
            weights=weights,
            threads=threads,
            progress=bar.step,
        )
    inputs = tokenizer(prompt or tokenizer.bos_token or " ", return_tensors="pt")
    timed = _Timed(tokenizer)
    fast.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        streamer=timed,
    )
    # The first put is the prompt, the second the token that prefill gave.
    steps = len(timed.times) - 2
    if steps < 1:
        return
    seconds = (timed.times[-1] - timed.times[1]) / steps
    streamed = fast.kernel.streamed_bytes
    share = streamed / seconds / read_bandwidth(streamed)
    out.print(
        f"{steps + 1} tokens, {1 / seconds:.1f} tokens/s, {streamed / seconds / 1e9:.1f} GB/s of "
        f"weights: {share:.0%} of this machine's read bandwidth",
        highlight=False,
    )
