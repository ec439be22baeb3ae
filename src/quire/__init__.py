"""Quire: any PyTorch model on a long sequence, within a byte budget."""

from quire.cost.machine import machine
from quire.errors import BudgetError, CaptureError, InputError, MissingRuleError, QuireError
from quire.fusing import fuse
from quire.pipeline import chunk, load, tradeoff

__all__ = [
    "BudgetError",
    "CaptureError",
    "InputError",
    "MissingRuleError",
    "QuireError",
    "chunk",
    "fuse",
    "load",
    "machine",
    "tradeoff",
]
