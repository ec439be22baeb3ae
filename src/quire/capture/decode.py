"""One decode step of a Hugging Face causal LM as a `Program` with an explicit cache.

    forward(ids[B, 1], slot[B], start[B], keys, values) -> logits[B, 1, vocabulary]
    forward(ids, slot, start, temperature[B], min_p[B], draw[B], keys, values) -> logits, next[B]

`slot[b]` is where row b's new key and value are written, `start[b]` the first live slot (left
padding lies before it), and the position of the token is `slot - start`. The caches are one
tensor `[B, heads, max_length, width]` a layer, changed in place. The second form picks the next
token as well (`capture/pick.py`). The model's own code runs, its own masks included: only where
attention is computed and where keys are kept is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import Dim

from quire.capture.export import export, from_exported
from quire.capture.pick import pick
from quire.capture.program import Program
from quire.errors import CaptureError

NAME = "quire"
"""Our attention's name in the tables of transformers."""


@attrs.frozen(eq=False)
class DecodeStep:
    """A captured decode step. `key_shapes` and `value_shapes` are `[heads, max_length, width]`,
    one for each layer's cache; `dtype` is that of the caches. `sampling`: the next token is an
    output beside the logits."""

    program: Program
    key_shapes: tuple[tuple[int, ...], ...]
    value_shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    max_length: int
    max_batch: int
    sampling: bool = False


def capture_decode(
    model: Any, max_length: int, max_batch: int, sampling: bool = False
) -> DecodeStep:
    """The decode step of `model` for 1 … `max_batch` rows and caches of `max_length` slots.

    Raises CaptureError where the model keeps state other than keys and values, or cannot be
    captured.
    """
    config = model.config.get_text_config(decoder=True)
    shapes = _cache_shapes(model)
    dtype = next(model.parameters()).dtype
    keys = tuple(torch.zeros(2, h, max_length, d, dtype=dtype) for h, d, _ in shapes)
    values = tuple(torch.zeros(2, h, max_length, d, dtype=dtype) for h, _, d in shapes)
    sliding = tuple(k != "full_attention" for k in getattr(config, "layer_types", None) or ())
    step = (_Sampling if sampling else _Step)(model, sliding or (False,) * len(shapes))
    # No upper end: where it is close to the example's size torch makes the dim a constant.
    batch = Dim("batch", min=1)
    example = (
        torch.zeros(2, 1, dtype=torch.long),
        torch.tensor([3, 1]),
        torch.tensor([0, 1]),
        *(torch.tensor([0.5, 0.0]) for _ in range(3 if sampling else 0)),
        keys,
        values,
    )
    free = {0: batch}
    vectors = (free,) * (len(example) - 2)
    with _ours(model):
        exported = export(step, example, {}, (*vectors, (free,) * len(keys), (free,) * len(values)))
        program = from_exported(exported, writes=True)
    return DecodeStep(
        program,
        tuple(tuple(k.shape[1:]) for k in keys),
        tuple(tuple(v.shape[1:]) for v in values),
        dtype,
        max_length,
        max_batch,
        sampling,
    )


class _Step(nn.Module):
    def __init__(self, model: Any, sliding: tuple[bool, ...]) -> None:
        super().__init__()
        self.model, self._sliding = model, sliding

    def forward(
        self,
        ids: torch.Tensor,
        slot: torch.Tensor,
        start: torch.Tensor,
        keys: tuple[torch.Tensor, ...],
        values: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        cache = _cache(keys, values, slot, self._sliding)
        live = torch.arange(keys[0].shape[2])[None] >= start[:, None]
        return self.model(
            input_ids=ids,
            attention_mask=live,
            position_ids=(slot - start)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits


class _Sampling(_Step):
    def forward(
        self,
        ids: torch.Tensor,
        slot: torch.Tensor,
        start: torch.Tensor,
        temperature: torch.Tensor,
        min_p: torch.Tensor,
        draw: torch.Tensor,
        keys: tuple[torch.Tensor, ...],
        values: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(ids, slot, start, keys, values)
        return logits, pick(logits[:, -1], temperature, min_p, draw)


def _cache(
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
    slot: torch.Tensor,
    sliding: tuple[bool, ...],
) -> Any:
    from transformers.cache_utils import Cache, CacheLayerMixin  # noqa: PLC0415  (optional)

    class Layer(CacheLayerMixin):
        def __init__(self, key: torch.Tensor, value: torch.Tensor, is_sliding: bool) -> None:
            super().__init__()
            self._held = (key, value)
            self.keys, self.values, self.is_sliding = key, value, is_sliding
            self.is_initialized = True

        def lazy_initialization(self, *args: Any, **kwargs: Any) -> None: ...

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            for cache, new in zip(self._held, (key_states, value_states), strict=True):
                at = slot[:, None, None, None].expand(-1, cache.shape[1], 1, cache.shape[3])
                cache.scatter_(2, at, new.to(cache.dtype))
            return self._held

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self._held[0].shape[2], 0

        def get_seq_length(self) -> Any:
            return slot

        def get_max_length(self) -> int:
            return self._held[0].shape[2]

    return Cache(layers=[Layer(*kv) for kv in zip(keys, values, sliding, strict=True)])


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    if rest.get("s_aux") is not None:
        raise CaptureError("attention sinks", allowed="softmax attention over keys", fix="no way")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None:
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2), None
    groups = query.shape[1] // key.shape[1]
    grouped = query.unflatten(1, (key.shape[1], groups))
    scores = torch.matmul(grouped, key.unsqueeze(2).transpose(-1, -2)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = torch.where(attention_mask.unsqueeze(2), scores, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value.unsqueeze(2)).flatten(1, 2).transpose(1, 2), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """transformers' `sdpa_mask` with an offset of the queries for each row."""
    row = torch.arange(batch_size)[:, None, None, None]
    query = torch.arange(q_length)[None, None, :, None]
    query = query + (q_offset[:, None, None, None] if torch.is_tensor(q_offset) else q_offset)
    key = torch.arange(kv_length)[None, None, None, :] + kv_offset
    mask = mask_function(row, torch.zeros_like(row), query, key)
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, :]
    return mask.expand(batch_size, 1, q_length, kv_length)


@contextmanager
def _ours(model: Any) -> Iterator[None]:
    """`model` with our attention, and experts that gather their weights."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS  # noqa: PLC0415
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: PLC0415

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    with ExitStack() as stack:
        for config in configs.values():
            stack.enter_context(_set(config, "_attn_implementation", NAME))
            stack.enter_context(_set(config, "_experts_implementation", "batched_mm"))
        yield


@contextmanager
def _set(config: Any, name: str, value: str) -> Iterator[None]:
    before = getattr(config, name, None)
    setattr(config, name, value)
    try:
        yield
    finally:
        setattr(config, name, before)


def _cache_shapes(model: Any) -> list[tuple[int, int, int]]:
    """Key heads, key width and value width of each layer, read from a run over one token."""
    from transformers.cache_utils import DynamicCache  # noqa: PLC0415

    with torch.no_grad():
        found = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    if not isinstance(found, DynamicCache) or any(
        not isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in found.layers
    ):
        raise CaptureError(
            f"{type(model).__name__} keeps {type(found).__name__} from token to token",
            allowed="models whose state is keys and values",
            fix="quire.chunk takes the model as it is",
        )
    kept: list[Any] = list(found.layers)
    return [(la.keys.shape[1], la.keys.shape[3], la.values.shape[3]) for la in kept]
