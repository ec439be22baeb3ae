"""What a rank says when a collective fails: which one, and which ranks did not answer.

A peer that was killed closes its connections, so that the collective raises at once; one that
hangs is found at the time limit of the process group (`timeout=` of `init_process_group`). Each
survivor then signs in at the group's store and aborts its own connections, which wakes those that
wait for it in turn. Who has not signed in some seconds later is named.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from quire.errors import QuireError, RankError

Result = TypeVar("Result")

PATIENCE = 3.0
"""Seconds given to the other survivors to sign in."""


def resolve(group: str) -> dist.ProcessGroup:
    return c10d._resolve_process_group(c10d.GroupName(group))


def guarded(what: str, group: str, call: Callable[[], Result]) -> Result:
    """`call()`, the collective `what`. Raises RankError where it fails for want of a peer."""
    if torch.compiler.is_compiling():
        return call()
    try:
        return call()
    except RuntimeError as error:
        raise explained(error, what, resolve(group)) from error


def explained(error: RuntimeError, what: str, group: dist.ProcessGroup) -> Exception:
    """A failed collective's error said plainly; any other error as it is."""
    text = str(error)
    signs = ("closed by peer", "reset by peer", "imed out", "NCCL", "Broken pipe", "aborted")
    if isinstance(error, QuireError) or not any(s in text for s in signs):
        return error
    rank = dist.get_rank(group)
    absent = _absent(group, rank)
    who = ", ".join(str(r) for r in absent) or "none: its word came late, or the network failed"
    return RankError(
        f"rank {rank} of {group.size()} lost its peers in {what}; no answer from rank {who} "
        f"({text.splitlines()[0]})",
        rank,
        what,
        absent,
    )


def _absent(group: dist.ProcessGroup, rank: int) -> tuple[int, ...]:
    """The ranks of `group` that do not sign in; empty where the store itself is gone."""
    store: Any = dist.PrefixStore(
        f"quire/failed/{group.group_name}", c10d._get_process_group_store(group)
    )
    # The store's host may be the rank that died.
    with contextlib.suppress(RuntimeError, dist.DistError):
        store.set_timeout(timedelta(seconds=PATIENCE))
        store.set(str(rank), b"1")
        group.abort()
        waiting = [r for r in range(group.size()) if r != rank]
        end = time.monotonic() + PATIENCE
        while waiting and time.monotonic() < end:
            waiting = [r for r in waiting if not store.check([str(r)])]
            time.sleep(0.05)
        return tuple(waiting)
    return ()
