"""What `q.attend` and `q.merge` mean together.

    attend   for each row and block of keys: max, Σ exp(s − max), Σ exp(s − max)·value
    merge    the blocks joined: Σ_{lo≤j<hi} exp(s_j)·v_j / Σ_{lo≤j<hi} exp(s_j)

That the joined blocks are this is the law `online-step`; that the code of the hooks does it is
tested (tests/kernel/test_rt.py), and trusted here.
"""

from __future__ import annotations

from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import prove
from quire.verify.digits import digits
from quire.verify.kernel.content import Attended, decode, dense, guards, inverse
from quire.verify.kernel.evaluate import as_poly, fresh
from quire.verify.kernel.phase import Attention
from quire.verify.poly import ONE, ZERO, Poly, atom_of, index, poly, variable
from quire.verify.poly import substitute as substitute_poly
from quire.verify.same import same, same_int
from quire.verify.value import NoMeaning, NotShown, as_real

BLOCK_MAX = 512
"""Keys that a block may hold: rt/attend.hpp's room for scores."""


def attention(epoch: Any, event: Attention) -> Attended:
    """The parts that an attention leaves. Raises NotShown where a read may leave its array, or a
    row's part is written twice."""
    return epoch.stacked(event, lambda: _Attention(epoch, event).run())


class _Attention:
    def __init__(self, epoch: Any, event: Attention) -> None:
        self.epoch, self.event = epoch, event
        self.ev, self.env, self.args = epoch.evaluator, event.env, event.args

    def poly(self, name: str) -> Poly:
        return self.ev.poly(self.args[name], self.env)

    def run(self) -> Attended:
        outer, group = self.poly("outer"), self.poly("group")
        u, g = fresh("u", outer), fresh("g", group)
        loops = tuple((atom_of(x), n) for x, n in ((u, outer), (g, group)) if x is not ZERO)

        def at(name: str) -> Poly:
            return as_poly(self.ev.call(self.args[name], self.env, (u, g)))

        block, width, inner = self.poly("block").constant, self.poly("width"), self.poly("inner")
        if block is None or not 1 <= block <= BLOCK_MAX:
            raise NotShown(f"blocks of {block} keys")
        shape = self._parts_shape(width)
        place = decode(at("part"), shape, dense(shape), (), "parts of an attention")
        if place[-2:] != [ZERO, ZERO]:
            raise NotShown("the parts of a row do not begin where a row does")
        lo, hi, keys = at("lo"), at("hi"), self._keys()
        blocks = shape[-2]
        if not (prove(lo, why="bounds: first key") and prove(keys - hi, why="bounds: last key")
                and prove(blocks * block - hi, why="bounds: last block")):  # fmt: skip
            raise NotShown(f"keys from {lo} to {hi}, where there are {keys}")
        scalar, i = self._joined(u, g, at, lo, hi, keys, inner, width)
        to, loops = digits(place, loops)
        rows = [substitute_poly(p, to) for p in place[:-2]]
        back = inverse(rows, shape[:-2], loops)
        if back is None:
            raise NotShown("the rows of an attention are not each written once")
        all_ = {x: substitute_poly(p, back) for x, p in to.items()} | back
        end = {atom_of(i): index(len(rows), width)}
        scalar = t.substitute(t.substitute(scalar, all_), end)
        key = self.epoch.state.key(self.event.pointer)
        known = self.epoch.state.match(
            key,
            (*shape[:-2], width),
            torch.float32,
            lambda want: scalar is want.scalar or same(scalar, want.scalar),
        )
        if known is not None:
            scalar = known.scalar
        self.epoch.state.claim("coverage", "attention: each row's blocks are written once")
        return Attended(
            shape, substitute_poly(lo, all_), substitute_poly(hi, all_), block, width, scalar
        )

    def _parts_shape(self, width: Poly) -> tuple[Poly, ...]:
        pointer = self.event.pointer
        shape = self.epoch.state.shape(self.epoch.state.key(pointer))
        strides = self.epoch.state.strides(pointer, shape)
        if len(shape) < 2 or shape[-1] is not width + 2 or strides != dense(shape):
            raise NotShown(f"parts of shape {shape} for a width of {width}")
        return shape

    def _keys(self) -> Poly:
        """How many keys there are: the size of the dim that `key_step` steps along."""
        pointer, step = self.ev.pointer(self.args["keys"], self.env), self.poly("key_step")
        _, held = self.epoch.content(pointer)
        strides = self.epoch.state.strides(pointer, held.shape)
        found = [
            n for n, by in zip(held.shape, strides, strict=True) if by is step and n is not ONE
        ]
        if len(found) != 1:
            raise NotShown(f"keys {step} apart in a tensor of shape {held.shape}")
        return found[0]

    def _joined(
        self, u: Poly, g: Poly, at: Any, lo: Poly, hi: Poly, keys: Poly, inner: Poly, width: Poly
    ) -> tuple[Any, Poly]:
        ev, env, epoch = self.ev, self.env, self.epoch
        array = {n: ev.pointer(self.args[n], env) for n in ("q", "keys", "values")}
        j = variable("j", [0], [keys - 1])
        i = variable("i", [0], [width - 1])

        def dot(k: Poly) -> Any:
            x = epoch.load(array["q"], at("query") + k, ())
            y = epoch.load(array["keys"], at("key") + j * self.poly("key_step") + k, ())
            return t.mul((as_real(x), 1), (as_real(y), 1))

        var, body = epoch.inside(inner, dot)
        product = t.bind("sum", inner, body, var)
        live = guards(j, lo, hi)
        score = as_real(ev.call(self.args["score"], env, (u, g, j, product)))
        weight = t.mul((t.exp(score), 1), (t.ind(live), 1))
        value = epoch.load(array["values"], at("value") + j * self.poly("value_step") + i, ())
        above = t.bind("sum", keys, t.mul((weight, 1), (as_real(value), 1)), j)
        return t.mul((above, 1), (t.bind("sum", keys, weight, j), -1)), i


def merged(epoch: Any, rest: Any, env: Any, i: Poly) -> Any:
    """The `i`-th element that a merge writes: of the row that its parts belong to."""
    parts, part_at, width, block, lo, hi = rest
    ev = epoch.evaluator
    pointer = ev.pointer(parts, env)
    _, held = epoch.content(pointer)
    if not isinstance(held, Attended):
        raise NoMeaning("a merge of what no attention made")
    place = decode(ev.poly(part_at, env), held.shape, dense(held.shape), (), "parts of a merge")
    if place[-2:] != [ZERO, ZERO] or ev.poly(width, env) is not held.width:
        raise NotShown("a merge of other parts than a row's")
    if ev.poly(block, env) is not poly(held.block):
        raise NotShown("a merge of blocks of another size")
    rows = held.shape[:-2]
    to = {atom_of(index(d, n)): place[d] for d, n in enumerate(rows) if n is not ONE}
    for mine, whole in ((lo, held.lo), (hi, held.hi)):
        here, there = ev.poly(mine, env), substitute_poly(whole, to)
        if here is not there and not same_int(here, there):
            raise NotShown(f"a merge of keys up to {here}, where the attention had {there}")
    return t.substitute(held.scalar, {**to, atom_of(index(len(rows), held.width)): i})
