"""Eager attention → `scaled_dot_product_attention`, found by algebra and dataflow.

    before   out = softmax(scale · (Q Kᵀ) + masks, dim=-1) @ V      S × S scores in memory
    after    out = scaled_dot_product_attention(Q, K, V, mask, is_causal, scale)

Side conditions: nothing else reads the scores, the weights or what lies between; no cast to
another dtype on the way; Q, K and V of equal head width (else torch has no fused kernel);
scale > 0; a mask that may hold −inf provably leaves a key in each row.
Claim: equal over the reals; wherever a row has a live key, the terms dropped are exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Operand, Program, Size
from quire.rewrite.contraction import product
from quire.rewrite.draft import Draft, Refused
from quire.rewrite.index_function import Evaluator, has_live_key
from quire.rewrite.recipe import Recipe
from quire.rewrite.scores import Mask, ScoreReader, Scores, factor, is_same, keeps_matrix

aten: Any = torch.ops.aten

SOFTMAX = {aten.softmax.int, aten._softmax.default}
_MOVES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.clone.default,
}


@attrs.frozen
class Attention:
    """One attention: the node that holds its result, and what it is made of, each with the
    same batch dims `batch`. `order` permutes the product's dims into those of the result."""

    out: fx.Node
    scores: Scores
    value: Recipe
    batch: tuple[Size, ...]
    out_batch: tuple[Size, ...]
    order: tuple[int, ...] | None
    folded: tuple[fx.Node, ...]
    """Scalings of Q or K that went into `scores.scale`."""


def fuse_attention(program: Program, notes: list[str] | None = None) -> Program:
    """`program` with every attention that is found replaced; see this module's text.

    A line for each goes to `notes`.
    """
    found = find_attention(program)
    if not found:
        return program
    draft = Draft(program)
    notes = [] if notes is None else notes
    for attention in found:
        try:
            notes.append(_apply(draft, attention))
        except Refused as error:
            notes.append(f"attention of {draft.module(draft.new[attention.out])} kept: {error}")
    return draft.finish()


def find_attention(program: Program) -> list[Attention]:
    """The attentions of `program` that meet the side conditions, in order."""
    evaluator = Evaluator(program)
    reader = ScoreReader(program, evaluator)
    softmaxes = [node for node, op in program.ops.items() if op.target in SOFTMAX]
    infinite = _made_with_infinity(program) if softmaxes else frozenset()
    results = [_match(program, reader, infinite, node) for node in softmaxes]
    return [a for a in results if a is not None]


# --- matching -------------------------------------------------------------------------------


def _match(
    program: Program, reader: ScoreReader, infinite: Set[fx.Node], softmax: fx.Node
) -> Attention | None:
    op = program.ops[softmax]
    scores_in: Operand = op["self"]
    last = op["dim"] in (-1, op.out.ndim - 1)
    if not last or op.out.ndim < 2 or scores_in.info.dtype != op.out.dtype:
        return None
    scores = reader.read(scores_in.node)
    end = _to_product(program, softmax)
    if scores is None or end is None:
        return None
    weights, out = end
    found = product(program.ops[out])
    if found is None or found.left != weights or found.right.node is weights.node:
        return None
    if found.added is not None or found.alpha != 1:
        return None
    batch, out_batch = op.out.shape[:-2], weights.shape[:-2]
    value = _full(found.right, out_batch)
    query, key = _full(scores.query, batch), _full(scores.key, batch)
    if value is None or query is None or key is None:
        return None
    if batch != out_batch:
        value = value.view((*batch, *value.shape[-2:]))
    widths = {query.shape[-1], value.shape[-1]}
    if len(widths) != 1 or any(_may_be_infinite(m, infinite) for m in scores.masks):
        return None
    folded, scale = _folded(program, [scores.query.node, scores.key.node], scores.scale)
    if scale <= 0 or not math.isfinite(scale):
        return None
    whole = attrs.evolve(scores, query=query, key=key, scale=scale)
    return Attention(out, whole, value, batch, out_batch, found.order, folded)


def _to_product(program: Program, softmax: fx.Node) -> tuple[Recipe, fx.Node] | None:
    """The weights as the product with V reads them, and that product."""
    node = softmax
    while True:
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        op = program.ops.get(user)
        if op is None:
            return None
        if not (is_same(op) or keeps_matrix(op)):
            return Recipe(node, program.info(node).shape), user
        node = user


def _full(part: Recipe, batch: tuple[Size, ...]) -> Recipe | None:
    """`part`, whose batch dims broadcast to `batch`, with all of them; None if they do not."""
    have = part.shape[:-2]
    if have == batch:
        return part
    tail = batch[len(batch) - len(have) :]
    if len(have) > len(batch) or any(h not in (1, b) for h, b in zip(have, tail, strict=True)):
        return None
    return part.expand((*batch, *part.shape[-2:]))


def _folded(
    program: Program, sides: list[fx.Node], scale: float
) -> tuple[tuple[fx.Node, ...], float]:
    """Scalings by a number above Q and K that nothing else reads, and the scale with them in."""
    folded = []
    for node in sides:
        while len(node.users) == 1 and (op := program.ops.get(node)) is not None:
            scaled = factor(op)
            if scaled is not None:
                folded.append(node)
                scale *= scaled[1]
                node = scaled[0].node
            elif op.target in _MOVES:
                node = op.operands[0].node
            else:
                break
    return tuple(folded), scale


def _may_be_infinite(mask: Mask, infinite: Set[fx.Node]) -> bool:
    """Whether a mask is made with an infinity and may leave a row without a live key: softmax
    then gives nan, and the fused kernel zeros."""
    if has_live_key(mask.function):
        return False
    return mask.recipe.node in infinite or any(
        _infinite(argument) for _, arguments in mask.recipe.steps for argument in arguments
    )


def _made_with_infinity(program: Program) -> frozenset[fx.Node]:
    """Every node that an infinity in a constant or in a call's arguments goes into."""
    found: set[fx.Node] = {
        item.node
        for item in program.inputs
        if item.kind == "constant" and _infinite(program.state[item.target])
    }
    for node in program.graph.nodes:
        flat = [*node.args, *node.kwargs.values()]
        if any(map(_infinite, flat)) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def _infinite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        # Of a constant without values nothing is known.
        return value.is_floating_point() and (value.is_meta or bool(value.isinf().any()))
    return isinstance(value, float) and math.isinf(value)


# --- editing --------------------------------------------------------------------------------


def _apply(draft: Draft, found: Attention) -> str:
    at = draft.new[found.out]
    scores, value = found.scores, found.value
    key = scores.key.transpose()
    parts = []
    for part in (scores.query, key, value):
        whole = part.view((*_four(part.shape[:-2]), *part.shape[-2:])).emit(draft, at)
        parts.append(_dense(draft, whole, at))
    causal = len(scores.masks) == 1 and scores.masks[0].is_causal
    mask = None if causal else _sum(draft, scores.masks, found.batch, at)
    fused = draft.call(
        aten.scaled_dot_product_attention.default,
        (*parts, mask, 0.0, causal),
        {"scale": scores.scale},
        at=at,
    )
    result = draft.view(fused, (*found.out_batch, *draft.shape(fused)[-2:]), at=at)
    if found.order is not None:
        result = draft.call(aten.permute.default, (result, list(found.order)), at=at)
    draft.replace(at, result)
    for node in found.folded:
        scaling = draft.new[node]
        draft.replace(scaling, next(a for a in scaling.args if isinstance(a, fx.Node)))
    traits = ["causal"] if causal else [] if mask is None else ["with a mask"]
    name = "scaled_dot_product_attention"
    return ", ".join([f"attention of {draft.module(at)} as {name}", *traits])


def _four(batch: tuple[Size, ...]) -> tuple[Size, ...]:
    """Batch dims as the two that the fused kernels take: all but the last are merged."""
    if len(batch) <= 2:
        return (*(1,) * (2 - len(batch)), *batch)
    merged: Size = 1
    for size in batch[:-1]:
        merged = merged * size
    return (merged, batch[-1])


def _dense(draft: Draft, node: fx.Node, at: fx.Node) -> fx.Node:
    """The fused kernels want the elements of a head side by side."""
    if draft.info(node).stride[-1] == 1:
        return node
    layout = {"memory_format": torch.contiguous_format}
    return draft.call(aten.clone.default, (node,), layout, at=at)


def _sum(
    draft: Draft, masks: tuple[Mask, ...], batch: tuple[Size, ...], at: fx.Node
) -> fx.Node | None:
    total = None
    for mask in masks:
        made = _mask_of_four(mask.recipe, batch).emit(draft, at)
        total = made if total is None else draft.call(aten.add.Tensor, (total, made), at=at)
    return total


def _mask_of_four(mask: Recipe, batch: tuple[Size, ...]) -> Recipe:
    """A mask that broadcasts to `[*batch, m, n]` as one that does to `[*_four(batch), m, n]`."""
    lead = mask.shape[:-2]
    lead = (*(1,) * (len(batch) - len(lead)), *lead)
    matrix = mask.shape[-2:] if mask.ndim >= 2 else (1,) * (2 - mask.ndim) + mask.shape
    if len(batch) > 2:
        if not all(have == 1 for have in lead[:-1]) and lead[:-1] != batch[:-1]:
            lead = (*batch[:-1], lead[-1])
            mask = mask.expand((*lead, *matrix))
        merged = _four(lead)
        return mask.view((*merged, *matrix))
    return mask.view((*_four(lead), *matrix))
