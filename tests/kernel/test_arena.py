"""Arena: buffers that are live together never share a byte."""

from hypothesis import given
from hypothesis import strategies as st

from quire.kernel.arena import Live, _pack

lives = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=14
)


@given(lives, st.booleans())
def test_no_overlap_and_no_less_than_the_bound(spans, by_size):
    items = [Live(f"b{k}", 64 * n, a, a + d) for k, (n, a, d) in enumerate(spans)]
    arena = _pack(items, by_size=by_size)
    for k, x in enumerate(items):
        assert arena.offsets[x.name] + x.size <= arena.size
        for y in items[:k]:
            if x.first <= y.last and y.first <= x.last:
                a, b = arena.offsets[x.name], arena.offsets[y.name]
                assert a + x.size <= b or b + y.size <= a
    assert arena.size >= arena.bound


def test_buffers_that_follow_each_other_share():
    arena = _pack([Live("a", 64, 0, 1), Live("b", 64, 2, 3), Live("c", 128, 1, 2)])
    assert arena.size == arena.bound == 192
