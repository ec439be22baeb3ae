"""How much of a tensor's memory lies in large pages."""

from pathlib import Path

import pytest
import torch

from quire.runtime.pages import LARGE, allocate

SIZES = Path("/proc/self/smaps")


def large_kib(tensor: torch.Tensor) -> int:
    """KiB of large pages in the mappings that hold a tensor, of their other memory too."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    total, inside = 0, False
    for line in SIZES.read_text().splitlines():
        head, *rest = line.split()
        if "-" in head:
            low, high = (int(at, 16) for at in head.split("-"))
            inside = low < end and start < high
        elif inside and head == "AnonHugePages:":
            total += int(rest[0])
    return total


needs_large_pages = pytest.mark.skipif(
    not SIZES.exists() or not large_kib(allocate(4 * LARGE).fill_(1)),
    reason="this system grants no large pages, or does not tell",
)
