"""P ranks in one process, without process groups: a thread for each, collectives on lists.

The runtime's own files are run from their text; what they import of `torch.distributed`, and the
kernels that have no exact form, are replaced by what is said here. So their hops, layouts, head
orders and registered backwards are the real ones.
"""

from __future__ import annotations

import builtins
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SECONDS = 120.0
"""A rank waits so long for the others."""


class Mismatch(Exception):
    """Ranks that do not meet: their calls of collectives differ."""


class Meeting:
    """Where the ranks exchange values. Raises Mismatch where they call different collectives."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks)
        self.slots: list[Any] = [None] * ranks
        self.here = threading.local()

    def exchange(self, group: str, tag: Any, value: Any) -> list[Any]:
        """The values of the members of `group`, in order."""
        me = self.here.rank
        self.slots[me] = (group, tag, value)
        self._wait()
        found = list(self.slots)
        self._wait()
        if any(f[:2] != (group, tag) for f in found):
            raise Mismatch(f"ranks call different collectives: {[f[:2] for f in found]}")
        return [found[r][2] for r in self.members(group)]

    def _wait(self) -> None:
        try:
            self.barrier.wait(SECONDS)
        except threading.BrokenBarrierError as error:
            raise RuntimeError("a rank does not come to a collective") from error

    def members(self, group: str) -> list[int]:
        """The ranks of a group that this rank is in."""
        if group == "GROUP":
            return list(range(self.ranks))
        way, _, ring = group.partition("/")
        share = self.ranks // int(ring)
        member, place = divmod(self.here.rank, share)
        if way == "ulysses":
            return [member * share + u for u in range(share)]
        return [m * share + place for m in range(int(ring))]

    def rank(self, group: str) -> int:
        return self.members(group).index(self.here.rank)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(rank)` on every rank at once; the first error is raised."""
        results: list[Any] = [None] * self.ranks
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            self.here.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:  # handed on below
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(r,), daemon=True) for r in range(self.ranks)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 5 * SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            self.barrier.abort()
            raise RuntimeError("ranks that do not end")
        if errors:
            raise errors[0]
        return results


class Groups(dict[Any, str]):
    """Names of a hybrid's groups."""

    def __missing__(self, key: Any) -> str:
        way, ring = key
        return f"{way}/{ring}"


class Collectives:
    """`torch.ops._c10d_functional`."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def wait_tensor(self, x: Tensor) -> Tensor:
        return x

    def all_to_all_single(self, x: Tensor, out: Any, sizes: Any, group: str) -> Tensor:
        me = self.meeting.rank(group)
        every = self.meeting.exchange(group, ("all_to_all", tuple(x.shape)), x)
        return torch.stack([other[me] for other in every])

    def all_reduce(self, x: Tensor, how: str, group: str) -> Tensor:
        every = self.meeting.exchange(group, ("all_reduce", how, tuple(x.shape)), x)
        if how != "sum":
            raise RuntimeError(f"an all-reduce by {how} is not run exactly")
        return _total(every)

    def all_gather_into_tensor(self, x: Tensor, ranks: int, group: str) -> Tensor:
        every = self.meeting.exchange(group, ("all_gather", tuple(x.shape)), x)
        return torch.cat(every)

    def reduce_scatter_tensor(self, x: Tensor, how: str, ranks: int, group: str) -> Tensor:
        me = self.meeting.rank(group)
        every = self.meeting.exchange(group, ("reduce_scatter", how, tuple(x.shape)), x)
        return _total([other.chunk(ranks)[me] for other in every])


def _total(parts: Sequence[Tensor]) -> Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found.clone()


class Dist:
    """`torch.distributed`, as far as the ring uses it."""

    isend, irecv = "isend", "irecv"

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def get_rank(self, group: str) -> int:
        return self.meeting.rank(group)

    def get_process_group_ranks(self, group: str) -> list[int]:
        return self.meeting.members(group)

    def P2POp(self, op: str, x: Tensor, peer: int, group: str) -> Any:
        return op, x, peer, group

    def batch_isend_irecv(self, ops: Sequence[Any]) -> list[Any]:
        (group,) = {op[3] for op in ops}
        posted = {peer: x.clone() for op, x, peer, _ in ops if op == "isend"}
        me = self.meeting.here.rank
        every = self.meeting.exchange(group, "batch_isend_irecv", posted)
        by_rank = dict(zip(self.meeting.members(group), every, strict=True))
        for op, x, peer, _ in ops:
            if op == "irecv":
                if me not in by_rank[peer]:
                    raise Mismatch(f"rank {peer} sends nothing to rank {me}")
                x.copy_(by_rank[peer][me])
        return [_Done() for _ in ops]

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)


class _Done:
    """A transfer that is over when it is posted."""

    def wait(self) -> None:
        pass


class Library:
    """`torch.library`: custom ops as autograd functions of this run."""

    def __init__(self) -> None:
        self.ops: dict[str, CustomOp] = {}

    def custom_op(self, name: str, *, mutates_args: Any) -> Any:
        def made(function: Any) -> CustomOp:
            self.ops[name] = CustomOp(function)
            return self.ops[name]

        return made

    def register_autograd(self, name: str, backward: Any, *, setup_context: Any) -> None:
        self.ops[name].register_autograd(backward, setup_context=setup_context)


class CustomOp:
    def __init__(self, function: Any) -> None:
        self.function, self.autograd = function, None

    def register_fake(self, function: Any) -> Any:
        return function

    def register_autograd(self, backward: Any, *, setup_context: Any) -> None:
        own = self.function

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                made = own(*args)
                setup_context(ctx, args, made)
                return made

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                found = backward(ctx, *grads)
                return tuple(None if isinstance(g, list) else g for g in found)

        self.autograd = Function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args) if self.autograd is None else self.autograd.apply(*args)


class _Torch:
    """`torch` with another `library` and `distributed`."""

    def __init__(self, library: Library, dist: Dist) -> None:
        self.library, self.distributed = library, dist

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Runtime:
    """The runtime's modules, run from `texts`, for the ranks of one meeting."""

    def __init__(self, texts: Mapping[str, str], meeting: Meeting, replace: Any) -> None:
        self.meeting = meeting
        self.texts, self.replace = texts, replace
        self.made: dict[str, Any] = {}
        self.torch = _Torch(Library(), Dist(meeting))
        failure = types.ModuleType("failure")
        failure.__dict__.update(resolve=lambda g: g, guarded=lambda what, group, call: call())
        wire = types.ModuleType("wire")
        wire.__dict__.update(sent=lambda what, nbytes: None)
        self.made["quire.runtime.failure"], self.made["quire.runtime.wire"] = failure, wire

    def module(self, name: str) -> Any:
        if name not in self.made:
            module = self.made[name] = types.ModuleType(name)
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
            sys.modules.setdefault(name, module)
            exec(compile(self.texts[name], f"<{name}>", "exec"), module.__dict__)
            if "_c10d" in module.__dict__:
                module.__dict__["_c10d"] = Collectives(self.meeting)
            self.replace(name, module)
        return self.made[name]

    def _import(
        self, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0
    ) -> Any:
        if name.startswith("quire"):
            if name in self.texts or name in self.made:
                return self.module(name)
            if name == "quire.runtime" and wanted:
                package = types.ModuleType(name)
                for item in wanted:
                    setattr(package, item, self.module(f"{name}.{item}"))
                return package
            raise ImportError(f"{name} in an exact run")
        if name == "torch" or (name.startswith("torch.") and not wanted):
            return self.torch
        if name == "torch.distributed":
            return self.torch.distributed
        return __import__(name, scope, local, wanted, level)
