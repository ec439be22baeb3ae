"""A kernel bound to its weights and run on this machine's threads."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from quire.capture.program import evaluate
from quire.errors import InputError, QuireError
from quire.kernel.compile import KernelPlan
from quire.kernel.describe import PhaseInfo, describe
from quire.kernel.ir import Buffer
from quire.runtime import build, pages
from quire.runtime.pack import packed, packed_size

WATCHDOG = 60.0
"""Seconds that a worker may wait for the others within one phase."""

_KERNELS: weakref.WeakSet[NativeKernel] = weakref.WeakSet()


def _after_fork() -> None:
    """A fork has locks of its own: its parent's may be held by a thread it lacks."""
    for kernel in _KERNELS:
        kernel.turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class NativeKernel:
    """A compiled kernel.

    Weights are read where they lie in the program's state, in large pages where the system moves
    them there; those that are packed (quantised, or stored with their rows apart) are copied once.
    Calls from several threads take turns; who uses `bind` and `run` holds `turn` around both.
    """

    def __init__(
        self,
        plan: KernelPlan,
        *,
        threads: int | None = None,
        watchdog: float = WATCHDOG,
        arch: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.threads = threads or _threads()
        self.path = build.library(plan.source, arch, extra)
        self._lib = build.load(self.path)
        self._watchdog = watchdog
        self._team: int | None = None
        self._start()
        self._arena = torch.empty(plan.arena.size + 64, dtype=torch.uint8)
        size = -(-plan.rendered.scratch // 4096) * 4096 + 4096
        self._scratch_size = size
        self._scratch = torch.empty(size * self.threads + 64, dtype=torch.uint8)
        self._scratch_at = _aligned(self._scratch)
        total = sum(len(s) for s in plan.rendered.slots)
        self._table = (ctypes.c_void_p * total)()
        self._repeats = (ctypes.c_int64 * max(1, len(plan.rendered.repeats)))(
            *plan.rendered.repeats
        )
        self._lengths = (ctypes.c_int64 * max(1, len(plan.program.symbols)))()
        self._outside: dict[str, list[int]] = {}
        self._weights: dict[Any, torch.Tensor] = {}
        self._bound: dict[str, int] = {}
        self._tensors: dict[str, weakref.ref[torch.Tensor]] = {}
        self._owner: Callable[[], object] = lambda: None
        self.turn = threading.RLock()
        """The lock of a call."""
        _KERNELS.add(self)
        self.packed_bytes = 0
        self._fill()

    def _start(self) -> None:
        team = self._team = int(self._lib.quire_team(self.threads, self._watchdog))
        weakref.finalize(self, _end, self._lib, team, os.getpid())

    def _fill(self) -> None:
        self._pack()
        base = _aligned(self._arena)
        k = 0
        for row in self.plan.rendered.slots:
            for buffer in row:
                if buffer.role == "state":
                    self._table[k] = self.weight(buffer).data_ptr()
                elif buffer.role == "temp":
                    self._table[k] = base + self.plan.arena.offsets[buffer.name]
                else:
                    self._outside.setdefault(buffer.target, []).append(k)
                k += 1

    def _pack(self) -> None:
        """Every weight of the kernel, the copied ones in one block, in the order they are read."""
        state = self.plan.program.state
        todo: dict[Any, tuple[Buffer, int]] = {}
        for buffer in (b for row in self.plan.rendered.slots for b in row if b.role == "state"):
            todo[_key(buffer)] = buffer, packed_size(state[buffer.target], buffer)
        room, at = pages.allocate(sum(-(-n // 64) * 64 for _, n in todo.values())), 0
        for key, (buffer, size) in todo.items():
            made = packed(state[buffer.target].detach(), buffer)
            if size:
                place = room[at : at + size].view(made.dtype).view(made.shape)
                made, at = place.copy_(made), at + -(-size // 64) * 64
            self._weights[key] = made
            self.packed_bytes += size
        pages.enlarge(self._weights.values())

    def weight(self, buffer: Buffer) -> torch.Tensor:
        """A weight as the kernel reads it."""
        return self._weights[_key(buffer)]

    @property
    def source(self) -> str:
        """The C++ translation unit."""
        return self.plan.source

    @property
    def phases(self) -> tuple[PhaseInfo, ...]:
        """What runs between two barriers, each distinct phase once."""
        return describe(self.plan)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that one call reads, experts that are not chosen included."""
        return sum(p.runs * p.weight_bytes for p in self.phases)

    def bind(self, name: str, tensor: torch.Tensor) -> None:
        """Use `tensor` as the input or output `name` of the calls to come. It is not kept alive."""
        pointer = tensor.data_ptr()
        self._tensors[name] = weakref.ref(tensor)
        if self._bound.get(name) != pointer:
            self._bound[name] = pointer
            for k in self._outside.get(name, ()):
                self._table[k] = pointer

    def bind_all(self, owner: object, tensors: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """`bind` each of `tensors()`, which stay where they are for the life of `owner`: nothing
        to do where that was the last to ask."""
        if self._owner() is owner:
            return
        for name, tensor in tensors().items():
            self.bind(name, tensor)
        self._owner = weakref.ref(owner)

    def run(self, lengths: Sequence[int]) -> None:
        """One call on the tensors bound, `lengths` being the values of the program's symbols.

        Raises QuireError if a worker hung.
        """
        self._lengths[: len(lengths)] = list(lengths)  # type: ignore[assignment]
        code = self._call()
        if code == 2:  # a fork took over: its own threads
            self._start()
            code = self._call()
        if code:
            report = self._lib.quire_report(self._team).decode()
            _keep_for_good([self, *(held() for held in self._tensors.values())])
            raise QuireError(
                f"the kernel hung: {report}",
                fix="the machine may be suspended or far overloaded; build the kernel again",
            )

    def _call(self) -> int:
        return self._lib.quire_run(
            self._team,
            self._table,
            self._lengths,
            self._repeats,
            self._scratch_at,
            self._scratch_size,
        )

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for inputs by path, as the program gives them.

        Raises InputError for inputs of another shape or dtype than the program's.
        """
        with self.turn:
            return self._call_on(inputs)

    def _call_on(self, inputs: Mapping[str, torch.Tensor]) -> list[Any]:
        program = self.plan.program
        self._owner = lambda: None
        env: dict[Any, int] = {}
        held = []
        for s in program.symbols:
            path = next(i.target for i in program.inputs if i.node is s.source)
            size = inputs[path].shape[s.dim]
            if not 1 <= size <= (most := self.plan.most[s.name]):
                raise InputError(f"{path} has size {size} in dim {s.dim}", allowed=f"1 to {most}")
            env[s.name] = size
        for item in program.users_inputs():
            info, tensor = program.info(item.node), inputs[item.target]
            want = tuple(evaluate(s, env) for s in info.shape)
            if tuple(tensor.shape) != want or tensor.dtype != info.dtype:
                raise InputError(
                    f"{item.target} is {tensor.dtype} {tuple(tensor.shape)}",
                    allowed=f"{info.dtype} {want}",
                )
            if item.node in program.writes and not tensor.is_contiguous():
                raise InputError(f"{item.target} is changed in place and not contiguous")
            held.append(tensor.contiguous())
            self.bind(item.target, held[-1])
        results = []
        for buffer in self.plan.lowered.outputs:
            shape = [evaluate(s, env) for s in buffer.shape]
            results.append(torch.empty(shape, dtype=buffer.dtype))
            self.bind(buffer.target, results[-1])
        self.run([env[s.name] for s in program.symbols])
        return self._as_program(results, env)

    def _as_program(self, results: list[torch.Tensor], env: Any) -> list[Any]:
        found: list[Any] = []
        left = iter(results)
        for leaf in self.plan.program.outputs:
            if isinstance(leaf, torch.fx.Node) and leaf in self.plan.program.infos:
                info = self.plan.program.info(leaf)
                shape = [evaluate(s, env) for s in info.shape]
                found.append(next(left).reshape(shape).to(info.dtype))
            else:
                found.append(leaf)
        return found


def _key(buffer: Buffer) -> Any:
    return buffer.target, buffer.order, buffer.scheme


def _aligned(tensor: torch.Tensor) -> int:
    return -(-tensor.data_ptr() // 64) * 64


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _keep_for_good(things: Any) -> None:
    """Never free these: a worker that hung may wake up and go on with them."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))


def _end(lib: Any, team: int, pid: int) -> None:
    if os.getpid() == pid:
        lib.quire_team_free(team)
