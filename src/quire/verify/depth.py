"""Room for terms that are as deep as a region has ops."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FRAMES = 10_000
"""Python frames while proving: a region of 42 ops took 1200 (ConvNeXt in one part)."""

_lock = threading.Lock()
_before: list[int] = []


@contextmanager
def room() -> Iterator[None]:
    """The interpreter's recursion limit at `FRAMES` or above, until the last inside leaves.

    The limit is the whole process's: where threads prove at once, the first raises it and the last
    puts it back.
    """
    with _lock:
        _before.append(sys.getrecursionlimit())
        sys.setrecursionlimit(max(FRAMES, _before[0]))
    try:
        yield
    finally:
        with _lock:
            first = _before[0]
            _before.pop()
            if not _before:
                sys.setrecursionlimit(first)
