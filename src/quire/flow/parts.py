"""Functions that compute a part of an op where ATen has no op for the part."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: int = 0,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Rows `is_causal …` of a causal attention: row i of `query` sees the keys `0 … is_causal + i`.

    `query` is [..., n, D], `key` and `value` [..., S, D] whole; only the keys that some row sees
    are read.
    """
    first, rows = is_causal, query.shape[-2]
    seen = min(first + rows, key.shape[-2])
    key, value = key.narrow(-2, 0, seen), value.narrow(-2, 0, seen)
    if first == 0:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
    mask = torch.full((rows, seen), float("-inf"), dtype=query.dtype, device=query.device)
    mask = mask.triu_(first + 1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
    )
