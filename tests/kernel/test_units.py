"""Units: what one worker must compute together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.kernel import index as ix
from quire.kernel.evaluate import NotLocalError
from quire.kernel.ir import Buffer, Call, Nest, Num, Read, Var
from quire.kernel.units import Units


def product(n=64):
    """out[i] = Σ_k x[k] · w[i, k]"""
    out = Buffer("y", (n,), torch.float32)
    w = Buffer("w", (n, 8), torch.float32, "state", "w")
    x = Buffer("x", (8,), torch.float32)
    i, k = Var("i", n), Var("k", 8)
    return Nest(out, (i,), (i,), Call("mul", (Read(x, (k,)), Read(w, (i, k)))), "sum", (k,)), out


def covered(units):
    """How often each element of each nest is in a segment."""
    counts = {}
    for segment in units.segments():
        for share in segment.shares:
            size = int(np.prod([int(a.size) for a in share.axes])) if share.axes else 1
            count = counts.setdefault(share.nest.outs[0].name, np.zeros(size, dtype=int))
            for o in range(segment.outer):
                for r in range(segment.inner):
                    at = share.base + o * share.outer_step + r * share.inner_step
                    count[[at + f for f in share.offsets]] += 1
    return counts


def test_rotation_of_heads_ties_pairs():
    nest, out = product(64)
    h, d = Var("h", 4), Var("d", 16)
    low = Read(out, (ix.add(ix.mul(h, Num(16)), d, Num(8)),))
    high = Read(out, (ix.add(ix.mul(h, Num(16)), d, Num(-8)),))
    turned = Call("select", (Call("lt", (d, Num(8))), low, high))
    value = Call("add", (Read(out, (ix.add(ix.mul(h, Num(16)), d),)), turned))
    z = Buffer("z", (4, 16), torch.float32)
    units = Units()
    units.start(nest)
    units.join(Nest(z, (h, d), (h, d), value), 0.25)
    (segment,) = units.segments()
    assert (segment.outer, segment.inner) == (4, 8)
    assert [s.offsets for s in segment.shares] == [(0, 8), (0, 8)]


def test_a_norm_over_all_rows_is_refused():
    nest, out = product(64)
    k = Var("k2", 64)
    total = Buffer("s", (), torch.float32)
    units = Units()
    units.start(nest)
    with pytest.raises(NotLocalError):
        units.join(Nest(total, (), (), Read(out, (k,)), "sum", (k,)), 0.25)
    assert len(units.segments()) == 1


@given(st.permutations(range(12)), st.sampled_from([2, 3, 4, 6]))
def test_every_element_once_and_reads_stay_inside(order, group):
    """Sums over groups of arbitrary elements: segments cover all, and hold what they read."""
    nest, out = product(12)
    table = list(order)
    units = Units()
    units.start(nest)
    g, k = Var("g", 12 // group), Var("k2", group)
    place = ix.add(ix.mul(g, Num(group)), k)
    pick = Num(table[-1])
    for n in range(len(table) - 2, -1, -1):
        pick = Call("select", (Call("eq", (place, Num(n))), Num(table[n]), pick))
    total = Buffer("s", (12 // group,), torch.float32)
    units.join(Nest(total, (g,), (g,), Read(out, (pick,)), "sum", (k,)), 1.0)
    counts = covered(units)
    assert (counts["y"] == 1).all() and (counts["s"] == 1).all()
    for segment in units.segments():
        rows, sums = segment.shares
        for o in range(segment.outer):
            for r in range(segment.inner):
                have = {
                    rows.base + o * rows.outer_step + r * rows.inner_step + f for f in rows.offsets
                }
                first = sums.base + o * sums.outer_step + r * sums.inner_step
                need = {table[(first + f) * group + n] for f in sums.offsets for n in range(group)}
                assert need <= have
