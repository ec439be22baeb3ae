"""Byte budgets as users write them."""

from __future__ import annotations

import re
from typing import Literal

from quire.errors import QuireError

Memory = int | float | str | None

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[_letter] = 1024**_power


def parse_budget(memory: Memory, baseline: int) -> int | Literal["min"] | None:
    """Bytes, None for no budget, or "min".

    `memory` is an int of bytes, a float as a fraction of `baseline`, or a text: "512MiB", "2GB",
    "min". Raises QuireError for anything else.
    """
    if memory is None or memory == "min":
        return memory  # type: ignore[return-value]
    if isinstance(memory, bool):
        raise _bad(memory)
    if isinstance(memory, int) and memory > 0:
        return memory
    if isinstance(memory, float) and 0 < memory <= 1:
        return int(memory * baseline)
    if isinstance(memory, float) and memory > 1 and memory.is_integer():
        return int(memory)
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", memory)
        if found and found[2].upper() in _UNITS and found[1].count(".") <= 1:
            return int(float(found[1]) * _UNITS[found[2].upper()])
    raise _bad(memory)


def _bad(memory: object) -> QuireError:
    why = ""
    if isinstance(memory, int | float) and not isinstance(memory, bool):
        why = ": a budget is more than 0" if memory <= 0 else ": a fraction is at most 1"
    return QuireError(
        f"memory={memory!r} is no budget{why}",
        allowed='bytes (536870912), text ("512MiB"), a fraction of the baseline (0.2), "min", None',
        fix='pass one of these, such as memory="512MiB"',
    )
