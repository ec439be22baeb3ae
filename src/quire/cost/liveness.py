"""Which tensors live when, for a given order of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from quire.flow.propagate import Storage


class Liveness:
    """`last[s]` is the index of the last step that reads `s` (the number of steps, if the model
    returns it; its own index, if nothing does), `before[k]` the bytes that live when step `k`
    begins: made earlier, and still to be read by it or later."""

    def __init__(
        self, storage: Storage, nbytes: Mapping[fx.Node, int], order: Sequence[fx.Node]
    ) -> None:
        index = {step: k for k, step in enumerate(order)}
        self.last: dict[fx.Node, int] = {}
        for step in order:
            readers = [index[r] for r in storage.readers.get(step, ()) if r in index]
            self.last[step] = max(readers, default=index[step])
            if step in storage.returned:
                self.last[step] = len(order)
        change = [0] * (len(order) + 2)
        for step in order:
            change[index[step] + 1] += nbytes[step]
            change[min(self.last[step], len(order)) + 1] -= nbytes[step]
        self.before: list[int] = []
        total = 0
        for k in range(len(order) + 1):
            total += change[k]
            self.before.append(total)
