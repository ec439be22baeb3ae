"""What buffers hold between epochs, which bytes they take, and what was claimed on the way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch

from quire.kernel.ir import BLOCKS, Buffer
from quire.verify import term as t
from quire.verify.decide import Premises
from quire.verify.kernel.content import Attended, dense
from quire.verify.kernel.cover import Wrong
from quire.verify.kernel.evaluate import Pointer
from quire.verify.kernel.match import Graph, in_shape
from quire.verify.kernel.tables import Tables
from quire.verify.poly import Poly, product
from quire.verify.same import same
from quire.verify.structure import walk
from quire.verify.value import NoMeaning, NotShown, Value, kind_of
from quire.verify.views import permute as permuted
from quire.verify.views import through

Key = tuple[str, Any]
"""A buffer: its role and name, or ("scratch", (call, name))."""

TYPES = {
    torch.float32: "float", torch.float64: "double", torch.bfloat16: "quire::bf16",
    torch.float16: "quire::fp16", torch.int64: "std::int64_t", torch.int32: "std::int32_t",
    torch.int16: "std::int16_t", torch.int8: "std::int8_t", torch.uint8: "std::uint8_t",
    torch.bool: "bool",
}  # fmt: skip
ELEMENTS = {name: dtype for dtype, name in TYPES.items()}
IN_BLOCKS = re.compile(rf"(?:const )?quire::(?:{'|'.join(BLOCKS)})<(\d+)>")
"""Weights in blocks, by the number of their columns."""


def element_type(b: Buffer) -> str:
    return f"quire::{b.scheme}<{b.shape[-1]}>" if b.scheme else TYPES[b.dtype]


@attrs.frozen(eq=False)
class Read:
    """One load: by which statement, of which element, under which further indices."""

    event: Any
    key: Key
    at: tuple[Poly, ...]
    bound: tuple[Any, ...]
    path: Premises


@attrs.frozen(eq=False)
class Found:
    """A buffer that was shown to hold a node's tensor."""

    buffer: str
    node: str


@attrs.frozen(eq=False)
class Asked:
    """A buffer found in the graph: the node's place among the hints, how far back its tensor is
    known from and by which name, and the graph behind it."""

    key: Key
    place: int
    back: int
    name: str
    rows: tuple[Any, ...]


def behind(node: Any, original: Any, given: Any) -> tuple[Any, ...]:
    """The graph from `node` back to tensors known by name."""
    rows: list[Any] = []
    walk(node, original, given, {}, {}, rows)
    return tuple(rows)


class State:
    """Contents of shared buffers. `held` maps a buffer to its tensor, `lost` to what took its
    bytes."""

    def __init__(self, graph: Graph, tables: Tables, limit: float) -> None:
        self.deadline = time.monotonic() + limit
        self.graph, self.tables = graph, tables
        self.lengths = [graph.sizes.symbols[str(s.name)] for s in graph.program.symbols]
        self.held: dict[Key, Value | Attended] = {}
        self.lost: dict[Key, str] = {}
        self.claims: dict[tuple[str, str], None] = {}
        self.found: list[Found] = []
        self.asked: list[Asked] = []
        """The buffers of the running epoch that were found in the graph, in order."""
        self._buffers: dict[Key, Buffer] = {}

    def in_time(self) -> None:
        """Raises NotShown once the proof has taken too long."""
        if time.monotonic() > self.deadline:
            raise NotShown("the proof takes longer than its limit")

    def claim(self, kind: str, text: str) -> None:
        self.claims.setdefault((kind, text))

    # --- buffers -----------------------------------------------------------------------------

    def buffer(self, pointer: Pointer) -> Buffer:
        if not 0 <= pointer.slot < len(self.tables.slots):
            raise NotShown(f"pointer {pointer.slot} of {len(self.tables.slots)}")
        return self.tables.slots[pointer.slot]

    def key(self, pointer: Pointer) -> Key:
        if pointer.slot < 0:
            return "scratch", (pointer.slot, pointer.name)
        b = self.buffer(pointer)
        outside = b.role in ("input", "output", "state")
        key = (b.role, (b.target, b.order, b.scheme) if outside else b.name)
        known = self._buffers.setdefault(key, b)
        if (known.shape, known.strides, known.dtype) != (b.shape, b.strides, b.dtype):
            raise NotShown(f"{b.name} has two shapes")
        return key

    def name(self, key: Key) -> str:
        if key[0] == "scratch":
            return f"scratch {key[1][1]}"
        b = self._buffers[key]
        return b.target if key[0] in ("input", "output") else b.name

    def check_type(self, pointer: Pointer) -> None:
        """The source's type of an array is that of its buffer, and weights are const."""
        if pointer.slot < 0:
            if pointer.kind not in ELEMENTS or pointer.offset % 64:
                raise NotShown(f"scratch of type {pointer.kind} at {pointer.offset}")
            return
        b = self.buffer(pointer)
        base = element_type(b)
        want = f"const {base}" if b.role == "state" else base
        if pointer.kind != want:
            raise NotShown(f"{b.name} is {want}, and read as {pointer.kind}")

    def shape(self, key: Key) -> tuple[Poly, ...]:
        return tuple(self.graph.sizes(s) for s in self._buffers[key].shape)

    def strides(self, pointer: Pointer, shape: Sequence[Poly]) -> tuple[Poly, ...]:
        if pointer.slot < 0:
            return dense(shape)
        return tuple(self.graph.sizes(sympy.sympify(s)) for s in self.buffer(pointer).strides)

    def dtype(self, pointer: Pointer) -> torch.dtype:
        return ELEMENTS[pointer.kind]

    def kind(self, pointer: Pointer) -> str:
        if pointer.kind not in ELEMENTS:
            raise NotShown(f"a write to {pointer.kind}")
        return kind_of(ELEMENTS[pointer.kind])

    # --- contents ----------------------------------------------------------------------------

    def before(self, pointer: Pointer) -> Value | Attended:
        """What a shared buffer held before the epoch."""
        key = self.key(pointer)
        if key in self.held:
            return self.held[key]
        name = self.name(key)
        if key in self.lost:
            raise Wrong(f"{name} is read after {self.lost[key]} took its place")
        if key[0] == "state":
            found = self._weight(self.buffer(pointer))
        elif key[0] == "input":
            found = self._outside(self.graph.input(key[1][0], True))
        else:
            raise NotShown(f"{name} is read before it is written")
        self.held[key] = found
        return found

    def _outside(self, node: Any) -> Value:
        known = self.graph.given.get(node)
        return self.graph.original.cut(node) if known is None else known

    def _weight(self, b: Buffer) -> Value:
        found = self._outside(self.graph.input(b.target, False))
        if b.order:
            found = through(found, permuted(found.shape, b.order))
        sizes = tuple(self.graph.sizes(s) for s in b.shape)
        if found.shape != sizes:
            raise NotShown(f"the weight {b.target} is of shape {found.shape}, and not {sizes}")
        return found

    def match(
        self, key: Key, shape: tuple[Poly, ...], dtype: torch.dtype, equal: Callable[[Value], bool]
    ) -> Value | None:
        """The graph's tensor that a buffer holds, from now on known by its node's name."""
        for place, node in enumerate(self.hints(key)):
            self.in_time()
            want = self.graph.seen_as(node, shape, kind_of(dtype))
            if want is None or not equal(want):
                continue
            rows = behind(node, self.graph.original, self.graph.given)
            first, back = self.graph.first_of(node)
            name = self.graph.original.inputs.get(first, first.name)
            self.asked.append(Asked(key, place, back, name, rows))
            self.found.append(Found(self.name(key), node.name))
            return in_shape(self.graph.hold(first), shape)
        return None

    def hints(self, key: Key) -> Sequence[Any]:
        """Nodes that a buffer may hold, the likeliest first."""
        role = "temp" if key[0] == "scratch" else key[0]
        target = key[1][0] if role in ("input", "output") else ""
        return self.graph.hints(role, self._made_for(key), target)

    def _made_for(self, key: Key) -> str:
        """The name that `origin` knows a buffer by."""
        if key[0] != "scratch":
            return self._buffers[key].name
        call, word = key[1]
        names = self.tables.private[-call - 1] if -call <= len(self.tables.private) else ()
        k = int(word[1:]) if word[1:].isdigit() else len(names)
        return names[k] if k < len(names) else ""

    # --- after an epoch ----------------------------------------------------------------------

    def leave(self, epoch: Any) -> None:
        """Take over what an epoch wrote; what shares bytes with it is lost."""
        self._scratch(epoch)
        wrote = {k: v for k, v in epoch.settled.items() if k[0] != "scratch"}
        self.take(wrote, set(epoch.entered))

    def take(self, wrote: Mapping[Key, Value | Attended], read: set[Key]) -> None:
        """New contents; what shares bytes with them is lost, and must not be in use."""
        for key in wrote:
            if key[0] == "state":
                raise Wrong(f"the weight {self.name(key)} is written")
            for other in (set(wrote) | read) - {key}:
                if self._share(key, other):
                    raise Wrong(f"{self.name(other)} and {self.name(key)} share bytes in one phase")
        for key, held in wrote.items():
            for other in [k for k in self.held if k not in wrote and self._share(key, k)]:
                self.lost[other] = self.name(key)
                del self.held[other]
            self.held[key] = held
            self.lost.pop(key, None)

    def _bytes(self, key: Key) -> tuple[int, int] | None:
        """First and last byte of the arena, at the largest lengths."""
        if key[0] != "temp":
            return None
        b = self._buffers[key]
        count: Any = b.dtype.itemsize
        for size in b.shape:
            count = count * size
        most = {sympy.Symbol(k): v for k, v in self.tables.longest.items()}
        if not isinstance(count, int):
            named = {s: most[sympy.Symbol(str(s))] for s in count.free_symbols}
            count = int(count.xreplace(named))
        at = self.tables.offsets.get(b.name)
        if at is None or at < 0 or at + count > self.tables.arena or at % 64:
            raise NotShown(f"{b.name} has no place in the arena")
        return at, at + count

    def _share(self, a: Key, b: Key) -> bool:
        x, y = self._bytes(a), self._bytes(b)
        return x is not None and y is not None and x[0] < y[1] and y[0] < x[1]

    def _scratch(self, epoch: Any) -> None:
        """Scratch arrays that share bytes are not in use at the same time."""
        used: dict[Key, list[Any]] = {}
        for key, writers in epoch.written.items():
            if key[0] == "scratch":
                value = epoch.settled[key]
                pointer = writers[0].pointer
                size = self._largest(product(value.shape)) * ELEMENTS[pointer.kind].itemsize
                first = min(w.position for w in writers)
                last = max(w.position for w in writers)
                used[key] = [pointer.offset, pointer.offset + size, first, last]
        for read in epoch.reads:
            if read.key in used:
                used[read.key][3] = max(used[read.key][3], read.event.position)
        rows = list(used.items())
        for k, (key, (low, high, first, last)) in enumerate(rows):
            if low < 0 or high > self.tables.scratch:
                raise NotShown(f"{self.name(key)} leaves the worker's scratch")
            for other, (low2, high2, first2, last2) in rows[:k]:
                together = first <= last2 and first2 <= last
                if together and low < high2 and low2 < high:
                    raise NotShown(f"{self.name(key)} and {self.name(other)} share bytes")

    def _largest(self, p: Poly) -> int:
        """A size at the largest lengths."""
        total = 0
        for mono, c in p.terms:
            item = c
            for x in mono:
                if x.name not in self.tables.longest:
                    raise NotShown(f"the size {p} has no largest value")
                item *= self.tables.longest[x.name]
            total += item
        return total

    # --- the end -----------------------------------------------------------------------------

    def outputs(self) -> list[tuple[str, str]]:
        """For each output and each input changed in place: its name, and why it is not shown to be
        the graph's (empty if it is)."""
        program = self.graph.program
        wanted: list[tuple[Key, str, Any]] = []
        for key in self.held:
            if key[0] == "output":
                k = int(str(key[1][0]).removeprefix("out"))
                wanted.append((key, f"output {k}", program.outputs[k]))
        made = {int(str(k[1][0]).removeprefix("out")) for k in self.held if k[0] == "output"}
        found = [
            (f"output {k}", "it is not written")
            for k, node in enumerate(program.outputs)
            if node in program.infos and k not in made and 0 not in program.info(node).shape
        ]
        changed = {i: n for i, n in program.writes.items()}
        for node, value in changed.items():
            target = next(i.target for i in program.inputs if i.node is node)
            key = next((k for k in self.held if k[0] == "input" and k[1][0] == target), None)
            if key is None:
                found.append((f"input {target}", "it is not changed"))
            else:
                wanted.append((key, f"input {target} after the call", value))
        for key in self.held:
            if key[0] == "input" and self.graph.input(key[1][0], True) not in changed:
                wanted.append((key, f"input {key[1][0]}", self.graph.input(key[1][0], True)))
        for key, label, node in wanted:
            held, want = self.held[key], self.graph.value(node)
            if isinstance(held, Attended) or not isinstance(want, Value):
                raise NoMeaning(f"{label} is no tensor")
            want = in_shape(want, held.shape)
            equal = held.scalar is want.scalar or same(held.scalar, want.scalar)
            found.append((label, "" if equal else f"holds {t.show(held.scalar)[:300]}"))
        return found
