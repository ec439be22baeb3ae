"""Bytes that a rank sends, counted at the collectives.

`Wire` sees torch's functional collectives as they are dispatched, in forward and backward; ops
that talk to peers by themselves (the ring) report with `sent`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from quire.errors import QuireError
from quire.runtime.failure import resolve

_open: list[Wire] = []


def sent(what: str, nbytes: int) -> None:
    """Report that this rank sent `nbytes` to its peers."""
    for wire in _open:
        wire.bytes[what] += nbytes
        wire.calls[what] += 1


COUNTED = ("all_to_all_single", "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")


def _unknown(name: str) -> QuireError:
    return QuireError(
        f"how many bytes {name} sends is not known",
        allowed=f"{', '.join(COUNTED)} of torch.distributed._functional_collectives",
        fix="call it outside the `with Wire()` block, or report it with quire.runtime.wire.sent",
    )


class Wire(TorchDispatchMode):
    """Counts within its `with` block. `bytes` and `calls` by collective.

    An all-to-all of n bytes sends n·(P−1)/P; an all-gather of a part of n bytes n·(P−1) (ring
    algorithm); a reduce-scatter of n bytes n·(P−1)/P; an all-reduce of n bytes 2n·(P−1)/P.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def __enter__(self) -> Wire:
        _open.append(self)
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        _open.remove(self)
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema.name
        if schema.startswith("_c10d_functional::") and not schema.endswith("wait_tensor"):
            self._count(schema.removeprefix("_c10d_functional::"), args)
        elif schema.startswith("c10d::"):
            raise _unknown(schema)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        ranks = dist.get_world_size(resolve(args[-1]))
        tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        nbytes = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        kind = name.removesuffix("_").removesuffix("_coalesced")
        if kind not in COUNTED:
            raise _unknown(name)
        share = (ranks - 1) / ranks
        factor = dict(zip(COUNTED, (share, ranks - 1, share, 2 * share), strict=True))[kind]
        self.bytes[kind] += round(nbytes * factor)
        self.calls[kind] += 1
