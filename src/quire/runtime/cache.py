"""The key/value cache that prefill writes and the kernel reads."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from quire.capture.decode import DecodeStep
from quire.errors import InputError
from quire.runtime import pages


class Steps:
    """Tokens that the kernel wrote, in all layers at once."""

    count = 0


class Place:
    """Stands for where the tensors of a cache lie."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `[rows, heads, max_length, width]`, written in place."""

    is_croppable = True

    def __init__(
        self, key: torch.Tensor, value: torch.Tensor, is_sliding: bool, steps: Steps
    ) -> None:
        super().__init__()
        self.keys, self.values = key, value
        self.is_sliding, self.is_initialized = is_sliding, True
        self._own, self._steps = 0, steps

    @property
    def used(self) -> int:
        """Slots written."""
        return self._own + self._steps.count

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """The storage exists from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used, end = self.used, self.used + key_states.shape[2]
        self.keys[:, :, used:end] = key_states  # type: ignore[index]
        self.values[:, :, used:end] = value_states  # type: ignore[index]
        self._own += end - used
        return self.keys[:, :, :end], self.values[:, :, :end]  # type: ignore[index]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.keys.shape[2]  # type: ignore[union-attr]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows permuted in place: the kernel keeps their addresses."""
        for held in (self.keys, self.values):
            held[:, :, : self.used] = held[beam_idx, :, : self.used]  # type: ignore[index]

    def crop(self, tokens_to_remove: int) -> None:
        self._own -= abs(tokens_to_remove)


class SlotCache(Cache):
    """Caches of all layers for `rows` sequences.

    While a prompt is written all rows use the same slots. Before the first step of the kernel
    `compact` moves each row's live tokens to its first slots: from then on row b holds
    `lengths[b]` tokens, and padding on either side is gone.
    """

    def __init__(self, step: DecodeStep, rows: int, sliding: tuple[bool, ...]) -> None:
        shapes = [
            (rows, *x)
            for pair in zip(step.key_shapes, step.value_shapes, strict=True)
            for x in pair
        ]
        held = iter(pages.tensors(shapes, step.dtype))
        self._steps = Steps()
        layers = [SlotLayer(next(held), next(held), s, self._steps) for s in sliding]
        super().__init__(layers=list(layers))
        self.max_length = step.max_length
        self.lengths = None
        self.starts = torch.zeros(rows, dtype=torch.long)

    @property
    def lengths(self) -> torch.Tensor | None:
        """Tokens of each row, int64 `[rows]`; None while a prompt is written. Changed in place."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: torch.Tensor | None) -> None:
        self._lengths = None if lengths is None else lengths.long().clone()
        self._hold()

    def _hold(self) -> None:
        self.place = Place()
        """Another one where a tensor took another's place."""
        self._counts: Any = ()
        if self._lengths is not None:  # counted without a call of torch
            whole = ctypes.c_int64 * len(self._lengths)
            self._counts = whole.from_address(self._lengths.data_ptr())

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("place", "_counts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold()

    def tensors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(layer.keys, layer.values) for layer in self.layers]  # type: ignore[misc]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].used  # type: ignore[attr-defined]

    def room(self, more: int) -> None:
        """Raises InputError if `more` tokens do not fit."""
        used = self.get_seq_length()
        if used + more > self.max_length:
            raise InputError(
                f"{used + more} tokens",
                allowed=f"max_length={self.max_length} tokens, prompt and continuation",
                fix=f"quire.fuse(model, max_length={used + more})",
            )

    def compact(self, live: torch.Tensor | None, rows: int) -> None:
        """`live[b, slot]` says which slots hold a row's tokens (None: all)."""
        used = self.get_seq_length()
        if live is None:
            self.lengths = torch.full((rows,), used)
            return
        live = live[:, :used].bool()
        self.lengths = lengths = live.sum(1)
        for b in range(rows):
            n = int(lengths[b])
            if bool(live[b, :n].all()):
                continue
            at = live[b].nonzero()[:, 0]
            for key, value in self.tensors():
                key[b, :, :n] = key[b, :, at]
                value[b, :, :n] = value[b, :, at]

    def advance(self) -> None:
        """One more token in every row."""
        for b in range(len(self._counts)):
            self._counts[b] += 1
        self._steps.count += 1

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        if self.lengths is not None:
            self.lengths.copy_(self.lengths[beam_idx])

    def crop(self, tokens_to_remove: int) -> None:
        before = self.get_seq_length()
        super().crop(tokens_to_remove)
        if self.lengths is not None:
            self.lengths.sub_(before - self.get_seq_length())
