"""Quire: any PyTorch model on a long sequence, within a byte budget."""

from importlib.metadata import version

from quire.cost.machine import machine
from quire.errors import (
    BudgetError,
    CaptureError,
    InputError,
    MissingRuleError,
    QuireError,
    RankError,
)
from quire.fusing import fuse
from quire.pipeline import chunk, load, tradeoff
from quire.sharding import prove_shard, shard
from quire.verify.certificate import Certificate, verify
from quire.verify.claims import CertificateError, RefutedError, UnprovedError

__version__ = version("quire")

__all__ = [
    "BudgetError",
    "CaptureError",
    "Certificate",
    "CertificateError",
    "InputError",
    "MissingRuleError",
    "QuireError",
    "RankError",
    "RefutedError",
    "UnprovedError",
    "__version__",
    "chunk",
    "fuse",
    "load",
    "machine",
    "prove_shard",
    "shard",
    "tradeoff",
    "verify",
]
