"""Everything Quire raises, in one hierarchy.

Each error says where in the user's model it arose, what was found, what is allowed and
what to do about it.
"""

from __future__ import annotations


class QuireError(Exception):
    """Base of all errors raised by Quire.

    `where` names the place in the user's model (module path, file and line), `found` what was
    met there, `allowed` what would have been fine, and `fix` what the user can do.
    """

    def __init__(self, found: str, *, where: str = "", allowed: str = "", fix: str = "") -> None:
        self.found, self.where, self.allowed, self.fix = found, where, allowed, fix
        rows = [("at", where), ("allowed", allowed), ("to fix", fix)]
        super().__init__("\n".join([found, *(f"  {name}: {text}" for name, text in rows if text)]))


class CaptureError(QuireError):
    """The model could not be turned into a functional ATen graph."""


class MissingRuleError(CaptureError):
    """An op of the graph has no flow rule."""


class InputError(QuireError):
    """A call's inputs differ from those the module was compiled for."""


class RankError(QuireError):
    """A collective of a sharded model failed. `rank` is this one, `collective` what it was in,
    `absent` the ranks of the group that did not answer."""

    def __init__(self, found: str, rank: int, collective: str, absent: tuple[int, ...]) -> None:
        super().__init__(
            found,
            where=f"{collective}, on rank {rank}; the traceback shows the line",
            allowed="all ranks running the same step",
            fix="see the log of the rank that did not answer; restart all from a checkpoint",
        )
        self.rank, self.collective, self.absent = rank, collective, absent


class BudgetError(QuireError):
    """No plan fits the byte budget.

    `best` is the plan with the lowest peak that there is, `binding` the tensors that make up
    that peak, largest first.
    """

    def __init__(self, found: str, *, best: object, binding: tuple[str, ...], **rest: str) -> None:
        self.best, self.binding = best, binding
        super().__init__(found, **rest)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  binds: {tensor}" for tensor in self.binding)])
