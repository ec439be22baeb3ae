"""Index functions against runs of the sub-graph they are read from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from quire.rewrite.index_function import (
    Evaluator,
    has_live_key,
    is_causal,
    is_constant,
    window,
)

from .programs import materialise, program_of, run

MIN = torch.finfo(torch.float32).min
LENGTH = torch.export.Dim("length", min=3, max=512)


def read_all(builds: Any, length: int = 6, dynamic: bool = False) -> list[Any]:
    """The index functions of `build(x)`, x a vector of `length`, for each of `builds`; where one
    is known it is checked against a run, at several lengths."""
    shapes = [{0: LENGTH}] if dynamic else None

    def build_all(x: torch.Tensor) -> Any:
        return tuple(build(x) for build in builds)

    program = program_of(build_all, torch.zeros(length), dynamic=shapes)
    evaluator = Evaluator(program)
    found = [evaluator.of(out) for out in program.outputs]
    for n in (length, 3, 9) if dynamic else (length,):
        env = {s.name: n for s in program.symbols}
        for f, held in zip(found, run(program, torch.zeros(n)), strict=True):
            if f is not None:
                torch.testing.assert_close(materialise(f, env), held, rtol=0, atol=0)
    return found


def read(build: Any, length: int = 6, dynamic: bool = False) -> Any:
    return read_all([build], length, dynamic)[0]


def causal(x: Any) -> Any:
    i = torch.arange(x.shape[0])
    return torch.where(i[None, :] <= i[:, None], 0.0, MIN)


def hf_causal(x: Any) -> Any:
    """As transformers makes it: positions, packed-sequence ids, gathers, and a where."""
    n = x.shape[0]
    positions = (torch.arange(n) + 0).unsqueeze(0)
    step = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1)
    ids = (step != 1).cumsum(-1)
    batch = torch.arange(1)[:, None, None, None]
    q, k = torch.arange(n)[None, None, :, None], torch.arange(n)[None, None, None, :]
    seen = q.new_ones((), dtype=torch.bool) & (ids[batch, q] == ids[batch, k])
    seen = seen & (positions.expand(1, -1)[batch, k] <= positions[batch, q])
    return torch.where(seen.expand(1, -1, n, n), torch.zeros(()), MIN)


def sliding(x: Any) -> Any:
    i = torch.arange(x.shape[0])
    apart = i[:, None] - i[None, :]
    return torch.where((apart >= 0) & (apart < 3), 0.0, MIN)


CAUSAL = [
    causal,
    hf_causal,
    lambda x: torch.triu(torch.full((x.shape[0], x.shape[0]), -torch.inf), diagonal=1),
    lambda x: torch.zeros(x.shape[0], x.shape[0]).masked_fill(
        torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril().logical_not(), MIN
    ),
    lambda x: (1.0 - torch.ones(x.shape[0], x.shape[0]).tril()) * MIN,
]


@pytest.mark.parametrize("dynamic", [False, True])
def test_causal(dynamic: bool) -> None:
    for which, f in enumerate(read_all(CAUSAL, dynamic=dynamic)):
        assert is_causal(f), which
        assert has_live_key(f)
        assert not is_constant(f, 0.0)
        assert window(f) == (None, 0)


def without_diagonal(x: Any) -> Any:
    i = torch.arange(x.shape[0])
    return torch.where(i[None, :] < i[:, None], 0.0, MIN)


NOT_CAUSAL = [
    sliding,
    without_diagonal,
    lambda x: causal(x).transpose(0, 1),
    lambda x: causal(x).clone() * 0.0,
    lambda x: causal(x) + causal(x),
    lambda x: torch.where(causal(x) == 0.0, 0.0, -1e4),
    lambda x: torch.where(causal(x) == 0.0, MIN, 0.0),
    lambda x: causal(x)[1:],
    lambda x: causal(x) + x,
]


@pytest.mark.parametrize("dynamic", [False, True])
def test_not_causal(dynamic: bool) -> None:
    for which, f in enumerate(read_all(NOT_CAUSAL, dynamic=dynamic)):
        assert not is_causal(f), which


def test_windows_and_dead_rows() -> None:
    near, dead, soft = read_all(
        [sliding, without_diagonal, lambda x: torch.where(causal(x) == 0.0, 0.0, -1e4)],
        dynamic=True,
    )
    assert window(near) == (2, 0)
    assert has_live_key(near)
    assert not has_live_key(dead)
    assert window(soft) is None


def test_a_window_wider_than_every_length_is_causal() -> None:
    def build(width: int) -> Any:
        def wide(x: Any) -> Any:
            i = torch.arange(x.shape[0])
            apart = i[:, None] - i[None, :]
            return torch.where((apart >= 0) & (apart < width), 0.0, MIN)

        return wide

    found = read_all([build(512), build(511)], dynamic=True)
    assert [is_causal(f) for f in found] == [True, False]
    found = read_all([build(6), build(5)], length=6)
    assert [is_causal(f) for f in found] == [True, False]


def test_no_mask_at_all() -> None:
    def bidirectional(x: Any) -> Any:
        seen = torch.arange(x.shape[0])[None, :, None] >= 0
        return torch.where(seen.expand(1, -1, x.shape[0]), torch.zeros(()), MIN)

    all_seen, ones, other = read_all(
        [
            bidirectional,
            lambda x: (torch.ones(x.shape[0]) - 1) * 1e9,
            lambda x: torch.ones(x.shape[0]) - 2,
        ],
        dynamic=True,
    )
    assert is_constant(all_seen, 0.0)
    assert is_constant(ones, 0.0)
    assert not is_constant(other, 0.0)


UNKNOWN = [
    lambda x: x + 1,
    lambda x: x * 0,
    lambda x: torch.where(x > 0, 0.0, MIN),
    lambda x: torch.rand(4),
    lambda x: torch.arange(6).view(2, 3),
    lambda x: torch.arange(6) % 2,
    lambda x: torch.arange(x.shape[0]).to(torch.float32) / 3,
    lambda x: torch.arange(6)[torch.arange(6) - 1],
    lambda x: torch.arange(300).to(torch.uint8),
    lambda x: torch.arange(6).cumsum(0),
]


def test_what_it_cannot_say_is_none() -> None:
    assert read_all(UNKNOWN) == [None] * len(UNKNOWN)


def test_a_buffer_is_not_a_constant() -> None:
    program = program_of(lambda x, seen: x + seen, torch.zeros(3), seen=torch.zeros(3))
    buffer = next(i.node for i in program.inputs if i.kind == "buffer")
    assert Evaluator(program).of(buffer) is None


# --- random sub-graphs -------------------------------------------------------------------------

numbers = st.integers(-3, 4)
leaf = st.one_of(
    st.sampled_from([("row",), ("column",), ("ones",), ("zeros",)]),
    st.tuples(st.just("full"), numbers),
)
small = st.integers(-2, 2)


def _grow(inner: Any) -> Any:
    compare = st.sampled_from(["le", "lt", "ge", "gt", "eq", "ne"])
    cond = st.tuples(compare, inner, inner)
    conds = st.one_of(
        cond,
        st.tuples(st.sampled_from(["logical_and", "logical_or"]), cond, cond),
        st.tuples(st.just("logical_not"), cond),
    )
    return st.one_of(
        st.tuples(st.sampled_from(["add", "sub"]), inner, inner),
        st.tuples(st.just("mul"), inner, numbers),
        st.tuples(st.just("where"), conds, inner, inner),
        st.tuples(st.just("fill"), inner, conds, numbers),
        st.tuples(st.sampled_from(["triu", "tril"]), inner, small),
        st.tuples(st.just("number"), conds),
        st.tuples(st.sampled_from(["transpose", "square", "shift", "cumsum", "diff"]), inner),
    )


def _make(tree: Any, n: int) -> torch.Tensor:
    name, *rest = tree
    made = [_make(t, n) if isinstance(t, tuple) else t for t in rest]
    i = torch.arange(n)
    match name:
        case "row":
            return i.unsqueeze(1).expand(n, n)
        case "column":
            return i[None, :].expand(n, -1)
        case "ones" | "zeros":
            return getattr(torch, name)(n, n, dtype=torch.int64)
        case "full":
            return torch.full((n, n), made[0])
        case "fill":
            return made[0].masked_fill(made[1], made[2])
        case "number":
            return made[0].to(torch.int64)
        case "transpose":
            return made[0].permute(1, 0)
        case "square":
            return made[0].unsqueeze(0).view(n, 1, n).squeeze(1)
        case "shift":
            return made[0][i.unsqueeze(1), i]
        case "cumsum":
            return made[0].cumsum(1)
        case "diff":
            return torch.diff(made[0], prepend=made[0][:, :1] - 1, dim=-1)
        case _:
            return getattr(torch, name)(*made)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    trees=st.lists(st.recursive(leaf, _grow, max_leaves=7), min_size=4, max_size=12),
    dynamic=st.booleans(),
)
def test_random_sub_graphs(trees: Any, dynamic: bool) -> None:
    builds = [lambda x, tree=tree: _make(tree, x.shape[0]) + 0 for tree in trees]
    found = read_all(builds, length=5, dynamic=dynamic)
    note(f"{sum(f is not None for f in found)} of {len(found)} known")
