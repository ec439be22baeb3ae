"""The flow rules: one file per family of ops. Importing this package fills the registry."""

from quire.flow.rules import (
    attention,
    contraction,
    conv,
    create,
    experts,
    gather,
    join,
    normalise,
    pointwise,
    reduce,
    scan,
    view,
    window,
)

__all__ = [
    "attention",
    "contraction",
    "conv",
    "create",
    "experts",
    "gather",
    "join",
    "normalise",
    "pointwise",
    "reduce",
    "scan",
    "view",
    "window",
]
