"""Masks of fused attention that say no more than the kernel knows by itself.

    sdpa(q, k, v, mask)  →  sdpa(q, k, v, is_causal=True)    mask[i, j] is: j ≤ i
    sdpa(q, k, v, mask)  →  sdpa(q, k, v)                    mask is all True, or all 0

Side condition: the mask is a function of its indices alone, known for all lengths, and queries and
keys are of one number. Claim: equal, as a masked key has weight 0 either way and key 0 is live.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch

from quire.capture.program import Op, Program
from quire.rewrite.draft import Draft
from quire.rewrite.index_function import Evaluator, IndexFunction, is_causal, is_constant
from quire.rewrite.terms import If

aten: Any = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


def drop_masks(program: Program, notes: list[str] | None = None) -> Program:
    """`program` with such masks dropped. A line for each goes to `notes`."""
    evaluator = Evaluator(program)
    notes = [] if notes is None else notes
    found = []
    for node, op in program.ops.items():
        if op.target is not SDPA or op["attn_mask"] is None or op["is_causal"]:
            continue
        mask = additive(evaluator.of(op["attn_mask"].node))
        if is_constant(mask, 0.0):
            found.append((node, False))
        elif is_causal(mask) and op["query"].shape[-2] == op["key"].shape[-2]:
            found.append((node, True))
    if not found:
        return program
    draft = Draft(program)
    for node, causal in found:
        _without_mask(draft, program.ops[node], causal)
        kind = "causal" if causal else "without a mask"
        notes.append(f"mask of {draft.module(draft.new[node])} dropped: {kind}")
    return draft.finish()


def additive(f: IndexFunction | None) -> IndexFunction | None:
    """What a mask adds to the scores: 0 and −inf for one of truth values."""
    if f is None or f.dtype is not torch.bool:
        return f
    if isinstance(f.value, bool):
        value: Any = 0.0 if f.value else float("-inf")
    else:
        value = If(f.value, 0.0, float("-inf"))  # type: ignore[arg-type]
    return attrs.evolve(f, dtype=torch.float32, value=value)


def _without_mask(draft: Draft, op: Op, causal: bool) -> None:
    at = draft.new[op.node]
    names = [a.name for a in op.target._schema.arguments]
    given = {**dict(zip(names, at.args, strict=False)), **at.kwargs}
    args = (given["query"], given["key"], given["value"], None, given.get("dropout_p", 0.0), causal)
    rest = {k: given[k] for k in ("scale", "enable_gqa") if k in given}
    draft.replace(at, draft.call(SDPA, args, rest, at=at))
