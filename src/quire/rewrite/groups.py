"""Keys and values repeated for the heads of their group, where the kernel needs no repeats.

    sdpa(q, repeat(k, n), repeat(v, n))  →  sdpa(q, k, v, enable_gqa=True)

Side condition: `repeat` writes every head n times in a row. Claim: equal; the kernel maps query
head h to key head h // n (grouped-query attention, Ainslie et al. 2023).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from quire.capture.program import Program
from quire.rewrite.draft import VIEWS, Draft

aten: Any = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


def share_keys(program: Program, notes: list[str] | None = None) -> Program:
    """`program` with such repeats dropped. A line for each attention goes to `notes`."""
    draft = Draft(program)
    notes = [] if notes is None else notes
    changed = False
    for at in draft.nodes(SDPA):
        query, key, value, *rest = cast(Any, at.args)
        if at.kwargs.get("enable_gqa") or len(draft.shape(query)) != 4:
            continue
        keys, values = repeated(draft, key), repeated(draft, value)
        if keys is None or values is None or draft.shape(keys)[1] != draft.shape(values)[1]:
            continue
        new = draft.call(
            SDPA, (query, keys, values, *rest), {**at.kwargs, "enable_gqa": True}, at=at
        )
        draft.replace(at, new)
        notes.append(f"keys and values of {draft.module(new)} shared by their heads")
        changed = True
    return draft.finish() if changed else program


def repeated(draft: Draft, node: Any) -> fx.Node | None:
    """The [B, G, S, D] tensor of which `node`, [B, G·n, S, D], holds each head n times in a row."""
    shape = draft.shape(node)
    inner = node.args[0] if node.target is aten.transpose.int else node
    if inner is not node and inner.target is node.target and _swap(inner) == _swap(node):
        node = inner.args[0]
    if node.target is aten.repeat_interleave.self_int and len(node.args) > 2:
        return node.args[0] if node.args[2] in (1, -3) else None
    if node.target not in VIEWS:
        return None
    wide = node.args[0]
    if wide.target is aten.clone.default:
        wide = wide.args[0]
    if wide.target is not aten.expand.default:
        return None
    narrow = wide.args[0]
    if narrow.target is not aten.unsqueeze.default or narrow.args[1] not in (2, -3):
        return None
    source = narrow.args[0]
    own, grown = draft.shape(source), draft.shape(wide)
    if len(own) != 4 or len(grown) != 5 or (own[0], own[2], own[3]) != (shape[0], *shape[2:]):
        return None
    same = (*grown[:2], *grown[3:]) == own and grown[1] * grown[2] == shape[1]
    return source if same else None


def _swap(node: fx.Node) -> set[int]:
    return {cast(int, d) % 4 for d in node.args[1:]}
