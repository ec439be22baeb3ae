"""Lies told about the runtime of sharded programs: what of its text is changed to what."""

from __future__ import annotations

import attrs

from quire.verify.shard.task import Hooks

HEADS, RING = "quire.runtime.sharded_attention", "quire.runtime.ring_attention"
RANKS, BLOCKS = "quire.runtime.collectives", "quire.runtime.block_attention"
LAYOUT, MEAN = "quire.plan.layout", "reduction"
DEALT = ("ulysses", "hybrid")
TURNED = ("ring", "hybrid")
ZIGZAG = ("ring", "hybrid", "gathered")


@attrs.frozen
class RuntimeLie:
    """`ways` are those of attention that run the text changed; None: all."""

    kind: str
    file: str
    ways: tuple[str, ...] | None
    old: str
    new: str

    def told(self, hooks: Hooks) -> Hooks:
        text = hooks.reduction if self.file == MEAN else hooks.texts[self.file]
        if self.old not in text:
            raise ValueError(f"{self.file} holds no {self.old!r}")
        changed = text.replace(self.old, self.new)
        if self.file == MEAN:
            return attrs.evolve(hooks, reduction=changed)
        return attrs.evolve(hooks, texts={**hooks.texts, self.file: changed})


_BACK = 'return _all_to_all(grads[0], ctx.group, "an all-to-all of attention\'s gradients"), None'
_SUMMED = (
    'return all_reduce(grads[0], "sum", ctx.group, "an all-reduce of a sum\'s gradient"), None'
)
_SCATTER = '_c10d.wait_tensor(_c10d.reduce_scatter_tensor(grad, "sum", ranks, group))'
_REDUCE = """        flat = collectives.all_reduce(
            flat, "sum", self.group.group_name, "the all-reduce of parameter gradients"
        )
"""
_LAST = "        if bucket:\n            self._average(bucket)\n"

RUNTIME = tuple(
    RuntimeLie(*row)
    for row in (
        ("wrong heads", HEADS, DEALT, "permute(2, 0, 1, 3, 4)", "permute(2, 1, 0, 3, 4)"),
        ("wrong heads", HEADS, DEALT, "movedim(0, 1).flatten(1, 2)", "movedim(0, 2).flatten(1, 2)"),
        ("wrong heads", HEADS, DEALT, "x.permute(1, 2, 0, 3, 4)", "x.permute(1, 0, 2, 3, 4)"),
        ("wrong heads", HEADS, DEALT, "back[:, : heads.heads]", "back[:, : heads.heads].flip(1)"),
        (
            *("wrong heads", HEADS, DEALT),
            "(parts, x.shape[1] // parts)).movedim(1, 0)",
            "(x.shape[1] // parts, parts)).movedim(2, 0)",
        ),
        ("wrong order", HEADS, ("ulysses",), "x.narrow(2, start, n)", "x.narrow(2, 0, n)"),
        ("missing collective", RANKS, DEALT, _BACK, "return grads[0], None"),
        ("missing collective", RANKS, None, _SUMMED, "return grads[0], None"),
        (
            *("missing collective", RANKS, ("gathered",), _SCATTER),
            "grad.chunk(ranks)[rank_of(group)].clone()",
        ),
        ("wrong scale", RANKS, None, "(both[0] / both[1])", "(both[0] / count)"),
        ("ignored tokens", RANKS, None, "valid.sum().to(wide)", "(valid | True).sum().to(wide)"),
        ("< for <=", BLOCKS, ZIGZAG, "k_first > q_last + self.right", "k_first >= q_first"),
        ("< for <=", BLOCKS, ZIGZAG, "k_last <= q_first + self.right", "k_first <= q_last"),
        ("< for <=", BLOCKS, ZIGZAG, "q_first == k_first and", "q_first >= k_first and"),
        (
            *("unrotated", RING, TURNED),
            'arriving, works = ring.post(moving, "ring gradients")',
            "arriving, works = moving, []",
        ),
        ("unrotated", RING, TURNED, "        moving = arriving\n", "        moving = share\n"),
        ("unrotated", RING, TURNED, "share += arriving", "share += moving"),
        ("unrotated", RING, TURNED, "(self.me - hop)", "(self.me + hop + 1)"),
        ("unrotated", RING, TURNED, "there, works = (here, [])", "there, works = (here * 1, [])"),
        ("wrong order", LAYOUT, None, "2 * self.ring - 1 - member", "2 * self.ring - 2 - member"),
        ("wrong order", LAYOUT, None, "start + lo - at, hi - lo", "start, hi - lo"),
        ("dropped tail", LAYOUT, None, "self.size - start)", "self.size - 1 - start)"),
        ("wrong gradient", MEAN, None, "/= self.group.size()", "/= 1"),
        ("wrong gradient", MEAN, None, "/= self.group.size()", "/= self.group.size() ** 2"),
        ("wrong gradient", MEAN, None, _REDUCE, ""),
        ("wrong gradient", MEAN, None, "grad.copy_(part.view_as(grad))", "pass"),
        ("wrong gradient", MEAN, None, _LAST, ""),
    )
)
