"""What `quire.chunk` gives back: the compiled module with its report, trace and file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.profiler import ProfilerActivity, profile

from quire.capture.program import Program
from quire.plan.plan import Plan
from quire.report.html import write_html
from quire.report.trace import TraceRecorder
from quire.runtime.module import ChunkedModule, PartSizes

PLAN_FILE = "quire_plan.json"


class Chunked(ChunkedModule):
    """A model that runs in parts. `plan` says which, `source` is the Python that runs."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        source: str,
        part_sizes: PartSizes,
        *,
        exported: ExportedProgram,
        curve: Callable[[], Sequence[Plan]],
    ) -> None:
        super().__init__(program, plan, source, part_sizes)
        self._exported = exported
        self._curve = curve

    def report(self, path: str | Path, *, title: str = "") -> Path:
        """Write one self-contained HTML page: memory before and after, regions, trade-off."""
        points = [(p.peak_bytes, p.seconds) for p in self._curve()]
        return write_html(self.plan, path, tradeoff=points, source=self.source, title=title)

    def trace(self, path: str | Path, *args: Any, **kwargs: Any) -> Path:
        """Run once under torch's profiler and write a Chrome trace with a counter of the bytes
        live above weights and inputs; Perfetto opens it."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self(*args, **kwargs)
        recorder = TraceRecorder("quire")
        live = 0
        results: Any = profiled.profiler
        events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
        for event in events:
            # Seconds since 1970 as a float are good to 240 ns only, too coarse for slices to nest.
            at = (event.start_ns() - events[0].start_ns()) * 1e-9
            if event.name() == "[memory]":
                live += event.nbytes()
                recorder.counter("bytes live", at, live)
            elif event.duration_ns() > 0:
                thread = event.start_thread_id()
                track = "run" if thread == events[0].start_thread_id() else f"thread {thread}"
                recorder.slice(event.name(), at, event.duration_ns() * 1e-9, track=track)
        target = Path(path)
        recorder.write(target)
        return target

    def save(self, path: str | Path) -> Path:
        """Write a .pt2 file: the original program as torch.export stores it, and this plan.

        `quire.load` gives the chunked module back; `torch.export.load` the original.
        """
        extra = {PLAN_FILE: self.plan.to_json()}
        torch.export.save(self._exported, str(path), extra_files=extra)
        return Path(path)
