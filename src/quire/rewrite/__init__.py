"""Rewrites of captured programs, `Program → Program`, each equal to what it replaces.

simplify         fewer, plainer ops; never slower, never more memory
fuse_attention   eager attention → the fused kernel
drop_masks       fused attention with a mask the kernel can do without → without
share_keys       fused attention on repeated keys and values → on the shared ones
lay_out          operands that a product would copy for each part → copied once
rearrange        another order of the calls, some of them run more than once
"""

from __future__ import annotations

from quire.capture.program import Program
from quire.rewrite.attention import fuse_attention
from quire.rewrite.draft import Draft
from quire.rewrite.groups import share_keys
from quire.rewrite.layout import lay_out
from quire.rewrite.lift import drop_idle, drop_neutral, lift_linears, share, split_to_slices
from quire.rewrite.masks import drop_masks
from quire.rewrite.rearrange import rearrange
from quire.rewrite.slices import push_slices
from quire.rewrite.strides import settle_strides

__all__ = [
    "drop_masks",
    "fuse_attention",
    "lay_out",
    "rearrange",
    "settle_strides",
    "share_keys",
    "simplify",
]


def simplify(program: Program, notes: list[str] | None = None) -> Program:
    """`program` with idle ops dropped, linears on unflattened tensors, equal calls shared and
    fused projections taken apart. Running it twice changes nothing more.

    A line for each projection that was taken apart goes to `notes`.
    """
    draft = Draft(program)
    drop_neutral(draft)
    split_to_slices(draft)
    lift_linears(draft)
    drop_idle(draft)
    draft.clear()
    push_slices(draft, notes)
    share(draft)
    return draft.finish()
