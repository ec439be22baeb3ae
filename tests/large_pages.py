"""How much of a tensor's memory lies in large pages."""

from pathlib import Path

import pytest
import torch

from quire.runtime.pages import LARGE, allocate

SIZES = Path("/proc/self/smaps")


def large_kib(tensor: torch.Tensor) -> int:
    """KiB of large pages in the mapping around a tensor's middle."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SIZES.read_text().splitlines():
        head, *rest = line.split()
        if "-" in head:
            low, high = (int(end, 16) for end in head.split("-"))
            inside = low <= middle < high
        elif inside and head == "AnonHugePages:":
            return int(rest[0])
    return 0


needs_large_pages = pytest.mark.skipif(
    not SIZES.exists() or not large_kib(allocate(4 * LARGE).fill_(1)),
    reason="this system grants no large pages, or does not tell",
)
