"""Google's "Trace Event Format", as far as Quire writes it, and what Perfetto asks beyond it:
slices of one thread nest, or Perfetto drops them."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from numbers import Real
from typing import Any

Event = dict[str, Any]
NEEDED = {"ph": str, "name": str, "ts": Real, "pid": int, "tid": int}


def problems(trace: dict[str, Any]) -> list[str]:
    """What is wrong with a trace, in words; empty if nothing is."""
    events: list[Event] = trace["traceEvents"]
    found = [
        f"{event}: {key} is {event.get(key)!r}"
        for event in events
        for key, kind in NEEDED.items()
        if not isinstance(event.get(key), kind)
    ]
    if found:
        return found
    for event in events:
        found += [f"{event}: {text}" for text in _own(event)]
    if found:
        return found
    timed = [e for e in events if e["ph"] != "M"]
    found += [f"{b} comes after {a}" for a, b in pairwise(timed) if b["ts"] < a["ts"]]
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in timed:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    return found + [text for track in tracks.values() for text in _overlaps(track)]


def _own(event: Event) -> list[str]:
    if event["ts"] < 0:
        return ["ts is negative"]
    match event["ph"]:
        case "X":
            good = isinstance(event.get("dur"), Real) and event["dur"] >= 0
            return [] if good else ["dur is no length of time"]
        case "C":
            values = event.get("args", {}).values()
            good = values and all(isinstance(v, Real) for v in values)
            return [] if good else ["a counter's args are not numbers"]
        case "M":
            return [] if isinstance(event.get("args", {}).get("name"), str) else ["names nothing"]
    return [f"ph {event['ph']} is not known"]


def _overlaps(track: list[Event]) -> list[str]:
    """Slices that end after the one they start in. Times are whole nanoseconds, in µs."""
    found, open_until = [], [float("inf")]
    for event in track:
        start = round(event["ts"] * 1000)
        end = start + round(event["dur"] * 1000)
        while open_until[-1] <= start:
            open_until.pop()
        if end > open_until[-1]:
            found.append(f"{event} ends after the slice it starts in")
        open_until.append(end)
    return found
