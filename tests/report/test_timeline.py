"""Steps of two timelines on one axis, and steps grouped by block."""

from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.plan.plan import Moment
from quire.report.timeline import groups, positions, unchanged, walk

from .plans import gpt2_plan


def moments(names):
    return tuple(Moment(name, "", 1, 0.0) for name in names)


def test_equal_steps_stand_at_the_same_place(plan):
    before, after = positions(plan.before, plan.after)
    assert before == after == [float(i) for i in range(len(plan.before) + 1)]


def test_new_steps_share_the_room_between_their_neighbours():
    _, edges = positions(moments("abc"), moments(["a", "x", "y", "b", "c"]))
    assert edges == pytest.approx([0, 1 / 3, 2 / 3, 1, 2, 3])


def test_new_steps_at_the_start_get_room():
    _, edges = positions(moments("abc"), moments("xabc"))
    assert edges == [0, 0.5, 1, 2, 3]


def test_a_moved_step_gives_way_to_the_longest_ordered_run():
    _, edges = positions(moments("abcd"), moments("bcda"))
    assert edges == pytest.approx([0, 2, 3, 3.5, 4])


def test_without_a_before_the_plan_stands_alone():
    assert positions((), moments("ab")) == ([0.0], [0.0, 1.0, 2.0])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.lists(st.sampled_from("abcdefghxyz")))
def test_positions_rise_and_fill_the_axis(before, after):
    left, right = positions(moments(before), moments(after))
    assert len(left) == len(before) + 1
    assert len(right) == len(after) + 1
    if after:
        assert (right[0], right[-1]) == (0, len(before))
        # Each step has a width: none can hide behind another.
        assert all(a < b for a, b in pairwise(right))


def test_groups_are_the_blocks_of_the_model(plan):
    labels = [group.label for group in groups(plan)]
    assert labels == ["wte · wpe", *(f"h.{i}" for i in range(12)), "ln_f · lm_head"]
    assert [step for group in groups(plan) for step in group.steps] == list(plan.order)


def test_two_kinds_of_block_keep_their_names():
    names = ["encoder.layer.0.fc", "encoder.layer.1.fc", "decoder.layer.0.fc"]
    names_of_blocks = ["encoder.layer.0", "encoder.layer.1", "decoder.layer.0"]
    plan = attrs.evolve(
        gpt2_plan(1),
        order=("a", "b", "c"),
        before=tuple(Moment(s, m, 1, 0.0) for s, m in zip("abc", names, strict=True)),
        after=(),
    )
    assert [g.label for g in groups(plan)] == names_of_blocks


def test_walk_meets_a_region_before_those_within(plan):
    found = [(region.name, depth) for region, depth in walk(plan.regions)]
    assert found[:3] == [("h0_rows", 0), ("h0_keys", 1), ("h0_mlp", 0)]


def test_unchanged(plan):
    same = {"regions": (), "rewrites": (), "peak_bytes": plan.baseline_bytes}
    assert unchanged(attrs.evolve(plan, **same))
    assert not unchanged(attrs.evolve(plan, **{**same, "rewrites": ("a",)}))
    assert not unchanged(plan)
