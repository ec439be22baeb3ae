"""The Chrome trace."""

import json

import pytest
import torch
from torch import nn

import quire
from quire.cost.machine import REFERENCE
from quire.measure import allocated
from quire.report.trace import TraceRecorder

from .trace_format import problems


def events(recorder, kind):
    return [e for e in json.loads(recorder.to_json())["traceEvents"] if e["ph"] == kind]


def test_slices_and_counters_in_microseconds_from_the_first(tmp_path):
    recorder = TraceRecorder()
    recorder.counter("memory", 10.0, 0)
    recorder.slice("h0_rows", 10.5, 0.25, {"parts": 32})
    recorder.counter("memory", 10.5, 1 << 20)
    path = recorder.write(tmp_path / "new" / "trace.json")
    trace = json.loads(path.read_text())
    assert trace["displayTimeUnit"] == "ms"
    (piece,) = events(recorder, "X")
    assert (piece["ts"], piece["dur"], piece["args"]) == (500_000, 250_000, {"parts": 32})
    counters = events(recorder, "C")
    assert [(e["ts"], e["args"]["bytes"]) for e in counters] == [(0, 0), (500_000, 1 << 20)]
    assert {e["name"] for e in counters} == {"memory"}


def test_each_track_has_a_name_and_a_number():
    recorder = TraceRecorder("gpt2")
    recorder.slice("a", 0, 1)
    recorder.slice("b", 0, 1, track="copy")
    names = {e["tid"]: e["args"]["name"] for e in events(recorder, "M") if e["tid"]}
    assert names == {1: "run", 2: "copy"}
    assert {e["name"]: e["tid"] for e in events(recorder, "X")} == {"a": 1, "b": 2}
    assert "gpt2" in recorder.to_json()


def test_span_records_also_what_fails():
    clock = iter([1.0, 3.0]).__next__
    recorder = TraceRecorder(clock=clock)
    with pytest.raises(KeyError), recorder.span("load", rows=3):
        raise KeyError
    (piece,) = events(recorder, "X")
    assert (piece["name"], piece["dur"], piece["args"]) == ("load", 2_000_000, {"rows": 3})
    assert len(recorder) == 1


def test_what_is_no_json_is_shown_as_text():
    recorder = TraceRecorder()
    recorder.slice("a", 0, 1, {"dtype": torch.float32, "shape": torch.Size([2, 3])})
    (piece,) = events(recorder, "X")
    assert piece["args"] == {"dtype": "torch.float32", "shape": [2, 3]}


def test_events_come_in_order_of_time():
    recorder = TraceRecorder()
    recorder.slice("late", 5, 1)
    recorder.slice("early", 1, 9)
    assert [e["name"] for e in events(recorder, "X")] == ["early", "late"]


def test_a_slice_comes_before_those_within_it():
    recorder = TraceRecorder()
    recorder.slice("inner", 1, 1)
    recorder.slice("outer", 1, 2)
    assert [e["name"] for e in events(recorder, "X")] == ["outer", "inner"]
    assert problems(json.loads(recorder.to_json())) == []


def test_empty_trace_is_valid():
    trace = json.loads(TraceRecorder().to_json())
    assert trace["traceEvents"]
    assert problems(trace) == []


def test_the_trace_of_a_run_keeps_to_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
    model = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 16))
    x = torch.randn(1000, 16)
    small = quire.chunk(model, (x,), memory="min")
    trace = json.loads(small.trace(tmp_path / "trace.json", x).read_text())
    assert problems(trace) == []
    slices = [e["name"] for e in trace["traceEvents"] if e["ph"] == "X"]
    assert sum("gelu" in name for name in slices) > 1  # in parts
    counted = [e["args"]["bytes"] for e in trace["traceEvents"] if e["ph"] == "C"]
    assert min(counted) >= 0
    assert max(counted) == allocated(lambda: small(x))[0]


GOOD = {"ph": "X", "name": "a", "ts": 1.0, "dur": 2.0, "pid": 1, "tid": 1}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ts": None}, "ts is None"),
        ({"tid": "main"}, "tid is 'main'"),
        ({"dur": None}, "no length of time"),
        ({"dur": -1.0}, "no length of time"),
        ({"ts": -1.0}, "negative"),
        ({"ts": 0.5}, "comes after"),
        ({"ts": 2.0, "dur": 1.001}, "ends after the slice"),
        ({"ph": "Q"}, "ph Q"),
        ({"ph": "C", "args": {"bytes": "3"}}, "not numbers"),
        ({"ph": "C", "args": {}}, "not numbers"),
        ({"ph": "M"}, "names nothing"),
    ],
    ids=str,
)
def test_the_check_of_the_format_finds_what_is_wrong(wrong, said):
    assert problems({"traceEvents": [GOOD]}) == []
    found = problems({"traceEvents": [GOOD, {**GOOD, **wrong}]})
    assert [text for text in found if said in text]
