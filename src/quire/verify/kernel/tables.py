"""What a kernel's source is run with: the buffers behind its pointers, and the loops' counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import sympy
import torch

from quire.kernel.ir import Buffer


@attrs.frozen(eq=False)
class Tables:
    """`slots`: the buffer of each pointer in order of execution. `offsets`: bytes into the arena
    of `arena` bytes, by buffer name. `repeats`: how often each loop runs. `scratch`: bytes of each
    worker. `longest`: the largest value of each length, by name, that buffers are made for.
    Hints of what to compare with: `origin`, for each buffer the node it was made for; `private`,
    for each call of a phase the buffers that its scratch arrays stand for; `holds`, for a buffer
    the first node that is said to show its elements as they are."""

    slots: tuple[Buffer, ...]
    offsets: Mapping[str, int]
    arena: int
    repeats: tuple[int, ...]
    scratch: int
    longest: Mapping[str, int]
    origin: Mapping[str, str]
    private: tuple[tuple[str, ...], ...] = ()
    holds: Mapping[str, str] = attrs.field(factory=dict)

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

    @classmethod
    def parse(cls, text: str) -> Tables:
        """What `text` wrote, without the hints."""
        body = json.loads(text)

        def size(x: str) -> Any:
            return int(x) if x.isdigit() else sympy.sympify(x)

        slots = tuple(
            Buffer(
                name, tuple(size(s) for s in shape), getattr(torch, dtype.removeprefix("torch.")),
                role, target, None if stride is None else tuple(size(s) for s in stride),
                tuple(order), scheme,
            )
            for name, role, target, shape, dtype, stride, order, scheme in body["slots"]
        )  # fmt: skip
        return cls(
            slots, body["offsets"], body["arena"], tuple(body["repeats"]), body["scratch"],
            body["longest"], {},
        )  # fmt: skip
