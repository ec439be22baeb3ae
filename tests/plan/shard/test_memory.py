"""Where parameters, gradients and optimiser states lie: on the host where nothing else fits."""

from __future__ import annotations

import json

import attrs
import pytest

from quire.errors import BudgetError
from quire.plan.shard.keep import CONTENTION, HOST_BANDWIDTH, Region, Row, _one
from quire.plan.shard.memory import fit
from quire.plan.shard.needs import (
    ADAM_BYTES,
    COPIED_BYTES,
    HOST_MEMORY,
    STATE_BYTES,
    WHOLE_BYTES,
    Needs,
)
from quire.plan.shard.plan import ShardPlan

GIB = 1 << 30
RANKS, LAYERS = 8, 4
OWN, APART = 2 * GIB, GIB  # parameters of a layer, and of none
PARAMETERS = LAYERS * OWN + APART
SPREAD = STATE_BYTES * PARAMETERS // RANKS
BROUGHT = WHOLE_BYTES * (2 * OWN + APART)


def _needs(seconds: float = 10.0) -> Needs:
    """Each layer keeps 4 GiB for backward, and has a border of 1 GiB."""
    layers = [
        Region(str(k), 4 * GIB, GIB, seconds, parameters=OWN, rowwise=GIB, again=1.0)
        for k in range(LAYERS)
    ]
    return Needs(tuple(layers), PARAMETERS, RANKS, GIB, GIB, apart=APART)


def test_states_stay_where_anything_fits() -> None:
    """However slow that is: all layers made again, or sent to the host."""
    least = SPREAD + BROUGHT + 6 * GIB
    found = fit(_needs(), least, 1000 * GIB)
    assert found.on_host == 0 and found.states == SPREAD + BROUGHT
    assert found.extra_seconds > 0
    assert "host" not in found.explain()
    assert fit(_needs(), None, 1000 * GIB).on_host == 0


def test_states_that_fit_no_device_lie_on_the_host() -> None:
    budget = SPREAD + BROUGHT
    found = fit(_needs(), budget, 1000 * GIB)
    assert found.on_host == SPREAD
    on_the_way = 2 * COPIED_BYTES * (2 * OWN + APART) // RANKS
    assert found.states == BROUGHT + on_the_way
    assert found.peak <= budget
    text = found.explain()
    assert "offload_policy=CPUOffloadPolicy()" in text
    assert f"{SPREAD / GIB:.2f} GiB of its memory for each device" in text


def test_layers_have_what_states_leave_of_the_host() -> None:
    """The more, the less is made again."""
    budget = BROUGHT + 2 * COPIED_BYTES * (2 * OWN + APART) // RANKS + 10 * GIB
    found = [fit(_needs(), budget, SPREAD + room) for room in (0, 4 * GIB, 16 * GIB)]
    sent = [Row.of(m.regions).host for m in found]
    assert [m.on_host for m in found] == [SPREAD] * 3
    assert sent[0] == 0 < sent[1] <= 4 * GIB < sent[2]
    assert found[0].extra_seconds >= found[1].extra_seconds > found[2].extra_seconds


def test_a_host_too_small_is_named() -> None:
    with pytest.raises(BudgetError, match="the best needs") as raised:
        fit(_needs(), SPREAD, SPREAD - 1)
    (said,) = [b for b in raised.value.binding if "host" in b]
    assert said == f"states on the host: {SPREAD} of {SPREAD - 1} bytes a device"


def test_what_states_on_the_host_cost() -> None:
    """Adam at the speed of the host's memory; copies beside a layer's compute, as it lasts."""
    adam = ADAM_BYTES * PARAMETERS / RANKS / HOST_MEMORY
    outside = 2 * COPIED_BYTES * APART / RANKS / HOST_BANDWIDTH
    layers = 3 * COPIED_BYTES * LAYERS * OWN / RANKS / HOST_BANDWIDTH
    for seconds, share in ((10.0, CONTENTION), (1e-9, 1.0)):
        found = fit(_needs(seconds), SPREAD + BROUGHT + 5 * GIB, 1000 * GIB)
        assert {how for _, how in found.regions} == {"keep"}
        assert found.extra_seconds == pytest.approx(adam + outside + share * layers)
        assert found.needs is not None and found.needs.adam == pytest.approx(adam)


def test_states_and_layers_share_the_way_to_the_host() -> None:
    """What one hides behind a layer's compute the other cannot."""
    copy = 2.0
    region = Region("a", int(copy * HOST_BANDWIDTH), 0, 2.5)
    both = attrs.evolve(region, passing=int(HOST_BANDWIDTH))
    assert _one(region, "offload").seconds == pytest.approx(2 * CONTENTION * copy)
    assert _one(both, "keep").seconds == pytest.approx(2 * CONTENTION)
    assert _one(both, "offload").seconds == pytest.approx(2 * (copy + 1 - 2.5))
    assert _one(both, "offload").host == region.kept


def test_the_file_says_where_states_are() -> None:
    found = fit(_needs(), SPREAD + BROUGHT, 1000 * GIB)
    plan = ShardPlan(RANKS, 1, (), (), (), (), (), (), memory=found)
    assert json.loads(plan.to_json())["memory"]["on_host"] == SPREAD
    assert "CPUOffloadPolicy" in plan.explain()
