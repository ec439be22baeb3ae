"""A Chrome trace: slices of time and a memory track, which Perfetto and chrome://tracing open.

The format is Google's "Trace Event Format": complete events ("X") with times in microseconds,
counter events ("C"), and metadata events ("M") for the names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROCESS = 1


class TraceRecorder:
    """Collects what happened and writes it as one JSON file.

    Times are seconds of `clock` (`time.perf_counter` unless told); the file counts from the
    first moment recorded. Slices of one `track` must nest or follow one another.
    """

    def __init__(
        self, process: str = "quire", *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock = clock
        self._process = process
        self._events: list[tuple[str, str, float, float, Mapping[str, Any], str]] = []

    def __len__(self) -> int:
        return len(self._events)

    def slice(
        self,
        name: str,
        start: float,
        seconds: float,
        args: Mapping[str, Any] | None = None,
        *,
        track: str = "run",
    ) -> None:
        """Something ran from `start` for `seconds`; `args` shows when the slice is chosen."""
        self._events.append(("X", name, start, seconds, args or {}, track))

    def counter(self, name: str, at: float, value: float, *, series: str = "bytes") -> None:
        """The counter `name` stood at `value` from `at` on: bytes live, say."""
        self._events.append(("C", name, at, 0.0, {series: value}, ""))

    @contextmanager
    def span(self, name: str, *, track: str = "run", **args: Any) -> Iterator[None]:
        """Record the body as a slice, also when it raises."""
        start = self.clock()
        try:
            yield
        finally:
            self.slice(name, start, self.clock() - start, args, track=track)

    def to_json(self) -> str:
        """The trace as JSON text."""
        # A slice before those within it, also where they start together.
        ordered = sorted(self._events, key=lambda e: (e[2], -e[3]))
        zero = min((event[2] for event in self._events), default=0.0)
        tracks: dict[str, int] = {}
        events: list[dict[str, Any]] = [_meta("process_name", self._process)]
        for kind, name, start, seconds, args, track in ordered:
            event = {"ph": kind, "name": name, "ts": _micros(start - zero), "pid": PROCESS}
            if kind == "X":
                thread = tracks.setdefault(track, len(tracks) + 1)
                # From rounded ends: a slice that ends with the one around it must not end later.
                dur = round(_micros(start - zero + seconds) - event["ts"], 3)
                event |= {"dur": dur, "tid": thread, "cat": track}
            else:
                event |= {"tid": 0}  # a counter belongs to the process; some readers want a thread
            events.append(event | {"args": dict(args)})
        events += [_meta("thread_name", name, thread) for name, thread in tracks.items()]
        # What is no JSON (a shape, a dtype) is shown as its text.
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, default=str)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace to `path` and return it; folders on the way are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path


def _meta(kind: str, name: str, thread: int = 0) -> dict[str, Any]:
    event = {"ph": "M", "name": kind, "ts": 0, "pid": PROCESS, "tid": thread}
    return event | {"args": {"name": name}}


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 3)
