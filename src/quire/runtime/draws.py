"""Random numbers for what each rank holds another part of.

Ranks that are seeded alike draw alike. That is right for tensors that all of them hold, and wrong
for heads or rows that each has its own of: these would be given one mask.

    with apart(group, device): …      ranks draw, each from a stream of its own
    drawn(op, group, x, …)            op(x, …) within that: each rank's part of what is drawn

The streams are told by one number of the user's generator and the rank. It is taken on every rank,
so that generators that were in one state still are, `torch.manual_seed` decides all, and what is
computed again with the generator set back, as checkpointing does, draws the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quire.runtime.failure import resolve

SEEDS = 1 << 62


@contextlib.contextmanager
def apart(group: str, device: torch.device) -> Iterator[None]:
    """Within it this rank draws on `device` from its own stream; the generators go on from where
    they were, but for one number of the CPU's."""
    seed = int(torch.randint(SEEDS, (), device="cpu")) + dist.get_rank(resolve(group))
    if device.type == "cpu":
        generators = [torch.default_generator]
    elif device.type == "meta":
        generators = []
    else:
        module = torch.get_device_module(device)
        at = module.current_device() if device.index is None else device.index
        generators = [module.default_generators[at]]
    states = [g.get_state() for g in generators]
    try:
        for g in generators:
            g.manual_seed(seed)
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


def drawn(op: Callable[..., Any], group: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`op(x, …)`, which draws for each element of `x`, this rank's part of a tensor."""
    with apart(group, x.device):
        return op(x, *args, **kwargs)
