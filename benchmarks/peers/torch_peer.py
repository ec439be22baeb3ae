"""Quire, transformers as it is, or under torch.compile: `PEER` in the environment says which."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from serve import Stand, serve
from transformers import AutoModelForCausalLM, StaticCache

import quire


class Fused:
    """One call of the kernel a step."""

    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        scheme = None if weights == "bfloat16" else weights
        self._fast = quire.fuse(
            model, max_length=length, max_batch=batch, weights=scheme, threads=threads
        )
        self._places: dict[tuple[int, int], Any] = {}
        kernel = self._fast.kernel
        self.facts = {
            "version": quire.__version__,
            "weights": weights,
            "weight_bytes": kernel.streamed_bytes,
            "cache_bytes": sum(k.numel() + v.numel() for k, v in self._cache(1).tensors())
            * 2
            // length,
        }

    def _cache(self, batch: int, position: int = 0) -> Any:
        cache = self._fast.new_cache(batch)
        cache.lengths = torch.full((batch,), position)
        return cache

    def stand(self, batch: int, position: int) -> Stand:
        place, ids = (batch, position), torch.zeros(batch, 1, dtype=torch.long)
        cache = self._places.get(place)
        if cache is not None:
            cache.crop(1)
        else:
            cache = self._places[place] = self._cache(*place)
            for held in itertools.chain(*cache.tensors()):
                held.normal_()  # memory of its own, not the system's page of zeros
            time.sleep(1)  # torch's threads are idle again
        return lambda: cache.crop(1), lambda: self._fast(ids, past_key_values=cache)

    def logits(self, ids: list[int]) -> Any:
        cache = self._cache(1)
        for token in ids:
            out = self._fast(torch.tensor([[token]]), past_key_values=cache).logits
        return out[0, -1].numpy()


class Eager:
    """transformers' model with its static cache."""

    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        if weights != "bfloat16":
            raise SystemExit(f"transformers has no {weights} of this format on a CPU")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._call = self._model
        if os.environ["PEER"] == "torch.compile":
            self._call = torch.compile(self._model)
        self._length = length
        self.facts = {"version": transformers.__version__, "weights": weights}

    def _cache(self, batch: int, position: int) -> Any:
        cache = StaticCache(config=self._model.config, max_cache_len=self._length)
        ids = torch.zeros(batch, position, dtype=torch.long)
        with torch.inference_mode():
            self._model(ids, past_key_values=cache, logits_to_keep=1)
        return cache

    def stand(self, batch: int, position: int) -> Stand:
        cache, ids = self._cache(batch, position), torch.zeros(batch, 1, dtype=torch.long)
        at = torch.full((batch, 1), position)

        def back() -> None:
            with torch.inference_mode():
                for layer in cache.layers:  # a StaticCache has no crop
                    layer.cumulative_length.fill_(position)

        def step() -> None:
            with torch.inference_mode():
                self._call(ids, past_key_values=cache, position_ids=at, logits_to_keep=1)

        for _ in range(3):  # what compiles, compiles here
            back()
            step()
        return back, step

    def logits(self, ids: list[int]) -> Any:
        with torch.inference_mode():
            return self._model(torch.tensor([ids])).logits[0, -1].float().numpy()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(Fused if os.environ["PEER"] == "quire" else Eager)
