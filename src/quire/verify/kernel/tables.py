"""What a kernel's source is run with: the buffers behind its pointers, and the loops' counts."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from quire.kernel.ir import Buffer


@attrs.frozen(eq=False)
class Tables:
    """`slots`: the buffer of each pointer in order of execution. `offsets`: bytes into the arena
    of `arena` bytes, by buffer name. `repeats`: how often each loop runs. `scratch`: bytes of each
    worker. `longest`: the largest value of each length, by name, that buffers are made for.
    Hints of what to compare with: `origin`, for each buffer the node it was made for; `private`,
    for each call of a phase the buffers that its scratch arrays stand for."""

    slots: tuple[Buffer, ...]
    offsets: Mapping[str, int]
    arena: int
    repeats: tuple[int, ...]
    scratch: int
    longest: Mapping[str, int]
    origin: Mapping[str, str]
    private: tuple[tuple[str, ...], ...] = ()

    def text(self) -> str:
        """As JSON, for the certificate."""
        slots = [
            [b.name, b.role, b.target, [str(s) for s in b.shape], str(b.dtype),
             None if b.stride is None else [str(s) for s in b.stride], list(b.order), b.scheme]
            for b in self.slots
        ]  # fmt: skip
        body = {
            "kernel": 1, "slots": slots, "offsets": dict(self.offsets), "arena": self.arena,
            "repeats": list(self.repeats), "scratch": self.scratch, "longest": dict(self.longest),
        }  # fmt: skip
        return json.dumps(body, sort_keys=True)
