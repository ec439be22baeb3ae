"""Bytes, seconds and ratios as short text, three figures at most."""

from __future__ import annotations

import math

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(nbytes: float) -> str:
    """`1.5 GiB`, `512 MiB`, `96 B`; never four figures where the next unit says it in one."""
    size, unit = abs(float(nbytes)), 0
    while unit + 1 < len(BYTE_UNITS) and _round(size, 0) >= 1000:
        size, unit = size / 1024, unit + 1
    return f"{'-' if nbytes < 0 else ''}{_short(size)} {BYTE_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """`1.52 s`, `12.3 ms`, `840 µs`."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds == 0 or _round(seconds * scale, 3) >= 1:
            return f"{_short(seconds * scale)} {unit}"
    return f"{_short(seconds * 1e6)} µs"


def ratio_text(ratio: float) -> str:
    """`0.81 ×`, `12.6 ×`."""
    return f"{_short(ratio)} ×"


def change_text(before: float, after: float) -> str:
    """`−92 %`, `+4 %`; a true minus sign, so that the columns line up."""
    if not before:
        return "0 %"
    change = (after / before - 1) * 100
    sign = "−" if change < 0 else "+"
    size = abs(change)
    # Between 99 and 100 a whole number would claim that all of it is gone.
    return f"{sign}{_short(size) if 99 < size < 100 else _short(_round(size, 0))} %"


def _short(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{_round(value, digits):.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _round(value: float, digits: int) -> float:
    # Halves go up, as in the page's script, so that both print the same text.
    return math.floor(value * 10**digits + 0.5) / 10**digits
