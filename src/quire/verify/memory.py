"""Storages and views of them, as the applied program writes and reads them.

A storage's content is the list of its writes, newest first: values are never changed, so that what
was read before a write stays what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attrs
import torch

from quire.verify import term as t
from quire.verify.poly import ONE, ZERO, Poly
from quire.verify.same import same
from quire.verify.term import Term
from quire.verify.value import (
    Index,
    NotShown,
    Shape,
    Value,
    build,
    convert,
    indices,
    kind_of,
    require,
    same_size,
)
from quire.verify.views import View

_count = itertools.count()

ALIVE: list[list[Storage]] = []
"""Storages of the functions that are being run, innermost last."""

Back = Callable[[Index], tuple[Term, list[Poly]]]


@attrs.frozen(eq=False)
class Write:
    """`value` written through a view; `older` is the content before."""

    key: tuple[Any, ...]
    shape: Shape
    forward: Callable[[Index], list[Poly]]
    back: Back
    value: Value
    older: Content

    @property
    def whole(self) -> bool:
        return self.key == ()


@attrs.frozen(eq=False)
class Held:
    """What a storage holds before any write that is known: a value, or nothing (`why`)."""

    value: Value | None
    why: str = "never written"


Content = Write | Held


class Storage:
    """A block of memory, seen as a tensor of `shape`."""

    def __init__(self, shape: Shape, dtype: torch.dtype, content: Content, label: str) -> None:
        self.shape, self.dtype, self.content, self.label = shape, dtype, content, label
        self.id = next(_count)
        if ALIVE:
            ALIVE[-1].append(self)

    def __repr__(self) -> str:
        return self.label


Seen = dict[tuple[Any, ...], list[Poly]]
"""Indices of one element, by the key of the view that each is of; `()` is the storage itself."""


def looked_up(content: Content, seen: Seen, kind: str) -> Any:
    """An element of a storage."""
    at = seen[()]
    if isinstance(content, Held):
        if content.value is None:
            gone = t.make("undef", content.why)
            return t.int_of(gone) if kind == "int" else gone if kind == "real" else _truth(gone)
        return convert(content.value.at(at), kind)
    if content.key in seen:
        # Within what was written: no condition to show.
        return content.value.at(seen[content.key])
    condition, inner = content.back(at)
    if condition is t.TRUE:
        return content.value.at(inner)
    older = looked_up(content.older, seen, kind)
    return t.ite(condition, content.value.at(inner), older)


def _truth(gone: Term) -> Term:
    return t.compare("eq", gone, t.ONE_)


class Tensor:
    """A view of a storage. `steps` lead from the storage to it."""

    def __init__(
        self, storage: Storage, steps: tuple[View, ...] = (), frozen: Content | None = None
    ) -> None:
        self.storage, self.steps, self.frozen = storage, steps, frozen
        self.sizes: Shape = steps[-1].shape if steps else storage.shape
        self.dtype = storage.dtype

    @property
    def ndim(self) -> int:
        return len(self.sizes)

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(s.key for s in self.steps)

    def seen(self, view: View, *, copies: bool = False) -> Tensor:
        """This tensor through one more view; `copies`: torch may copy here."""
        frozen = self.storage.content if copies else self.frozen
        if all(a is b for a, b in zip(view.shape, self.sizes, strict=False)) and (
            len(view.shape) == len(self.sizes) and view.key[0] in ("reshape", "narrow", "expand")
        ):
            return self
        return Tensor(self.storage, (*self.steps, view), frozen)

    @property
    def newest(self) -> bool:
        """Whether what was written last was written through this view."""
        content = self.storage.content
        return self.frozen is None and self.key == (
            content.key if isinstance(content, Write) else ()
        )

    def forward(self, idx: Index) -> list[Poly]:
        return self.seen_at(idx)[()]

    def seen_at(self, idx: Index) -> Seen:
        """Where the element `idx` is in each of the views that lead here."""
        at, key = list(idx), self.key
        found = {key: at}
        for k in reversed(range(len(self.steps))):
            found[key[:k]] = at = self.steps[k].forward(at)
        return found

    def back(self, idx: Index) -> tuple[Term, list[Poly]]:
        condition, at = t.TRUE, list(idx)
        for step in self.steps:
            if step.back is None:
                raise NotShown(f"{self.storage}: written through a view that has no inverse")
            more, at = step.back(at)
            condition = t.and_(condition, more)
        return condition, at

    def value(self) -> Value:
        """What it holds now."""
        content = self.storage.content
        now = self._seen_in(content)
        if self.frozen is None or self.frozen is content:
            return now
        # Where torch copied, what was written since is not seen.
        if not same(now.scalar, self._seen_in(self.frozen).scalar):
            raise NotShown(f"{self.storage}: read after a write that a copy would not see")
        return now

    def _seen_in(self, content: Content) -> Value:
        if not self.steps and isinstance(content, Held) and content.value is not None:
            return content.value
        kind = kind_of(self.dtype)
        return build(
            self.sizes, self.dtype, lambda idx: looked_up(content, self.seen_at(idx), kind)
        )

    def write(self, value: Value, *, exact: bool = True) -> None:
        """Store `value`, of this shape (or one that broadcasts to it)."""
        if exact:
            same = value.ndim == self.ndim and all(
                same_size(a, b, "shape of a write")
                for a, b in zip(value.shape, self.sizes, strict=False)
            )
            require(same, f"{self.storage}: {value.shape} written to a buffer of {self.sizes}")
        kind = kind_of(self.dtype)
        stored = build(self.sizes, self.dtype, lambda idx: convert(_spread(value, idx), kind))
        content = self.storage.content
        older = Held(None, "hidden") if self.key == () else content
        if isinstance(content, Write) and content.key == self.key:
            older = content.older
        self.storage.content = Write(self.key, self.sizes, self.forward, self.back, stored, older)


def _spread(value: Value, idx: Index) -> Any:
    own = list(idx)[len(idx) - value.ndim :]
    return value.at([ZERO if s is ONE else i for i, s in zip(own, value.shape, strict=True)])


def fresh(value: Value, label: str = "a new tensor") -> Tensor:
    """A tensor in memory of its own."""
    return Tensor(Storage(value.shape, value.dtype, Held(value), label))


def empty(shape: Shape, dtype: torch.dtype, label: str) -> Tensor:
    return Tensor(Storage(shape, dtype, Held(None), label))


def writes(content: Content, until: Content | None = None) -> list[Write]:
    """The writes of a content, newest first, down to `until` or one that hides the rest."""
    found = []
    while isinstance(content, Write) and content is not until:
        found.append(content)
        content = content.older
    return found


def covered(items: list[Write], at: list[Poly]) -> Term:
    """Whether index `at` was written."""
    return t.or_(*(w.back(at)[0] for w in items))


__all__ = ["indices"]
