"""What each ATen op means, element by element: one function per op, named as in its schema.

Written from torch's documentation, apart from the planner's rules, and tested against torch
through `interpret`. `table.MEANING` holds them all.
"""

from quire.verify.meaning import (  # noqa: F401  (they fill the table)
    activation,
    attention,
    contraction,
    create,
    gather,
    join,
    loss,
    losses,
    normalise,
    pointwise,
    reduce,
    sorted,
    view,
    window,
)
from quire.verify.meaning.table import MEANING, VIEWS, means_of

__all__ = ["MEANING", "VIEWS", "means_of"]
