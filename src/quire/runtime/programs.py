"""The programs of one sharded model: which of them a call takes, and how many are kept.

The first call of a kind (structure, dtypes, training or not) gets a program of its very shapes.
From then on the sizes of its sequences are free: calls that differ in nothing else share a program
for each bucket of lengths, in which the length is data. What cannot be captured for a range of
lengths gets a program of each length. All is decided by shapes alone, so that ranks, which are
given whole batches, decide alike; that they do is checked at each call once lengths have differed.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as pytree

from quire.apply.shard import Lines
from quire.apply.shard_code import Function
from quire.capture.program import Program
from quire.errors import CaptureError, InputError
from quire.plan.shard.plan import ShardPlan
from quire.runtime import collectives, sharded_attention


@attrs.frozen
class Length:
    """A length that is read from a call: leaf, dim, and the values that the program is for."""

    leaf: int
    dim: int
    values: range


@attrs.frozen(eq=False)
class Built:
    """One program: its plan, and what its functions need. `lengths` are given to the root's
    function after the user's tensors."""

    program: Program
    plan: ShardPlan
    lines: Lines
    functions: tuple[Function, ...]
    number: int = 0
    certificate: Any = None
    """What is proved of the functions: a `quire.Certificate`, at the length first run."""
    lengths: tuple[Length, ...] = ()
    certify: Callable[[tuple[int, ...]], Any] | None = None
    """The certificate at other lengths."""

    def read(self, leaves: Sequence[Any]) -> tuple[int, ...]:
        return tuple(leaves[x.leaf].shape[x.dim] for x in self.lengths)

    def takes(self, leaves: Sequence[Any]) -> bool:
        return all(n in x.values for n, x in zip(self.read(leaves), self.lengths, strict=True))


@attrs.frozen
class Free:
    """Sizes of a kind of call that may differ: leaf, dim, and the number of the length it is; the
    lengths of the first call, and the numbers of those that have differed since."""

    dims: tuple[tuple[int, int, int], ...]
    first: tuple[int, ...] = ()
    varied: frozenset[int] = frozenset()

    @classmethod
    def of(cls, leaves: Sequence[Any], sizes: set[Any]) -> Free:
        """The dims of a call that are as long as one of its attentions' sequences."""
        found = [
            (i, d, n)
            for i, x in enumerate(leaves)
            if isinstance(x, Tensor)
            for d, n in enumerate(x.shape)
            if n in sizes
        ]
        return cls(_numbered(found), tuple(dict.fromkeys(n for _, _, n in found)))

    def after(self, leaves: Sequence[Any]) -> Free:
        """With one more call: dims that differ in it are other lengths."""
        found = [(i, d, (k, leaves[i].shape[d])) for i, d, k in self.dims]
        now = list(dict.fromkeys(key for *_, key in found))
        return Free(
            _numbered(found),
            tuple(self.first[k] for k, _ in now),
            frozenset(
                new for new, (k, n) in enumerate(now) if k in self.varied or n != self.first[k]
            ),
        )

    def only_varied(self) -> Free:
        """Without dims that were always of one size: a batch may be as many as its tokens."""
        left = [(i, d, k) for i, d, k in self.dims if k in self.varied]
        first = tuple(self.first[k] for k in dict.fromkeys(k for *_, k in left))
        return Free(_numbered(left), first)

    def lengths(self, leaves: Sequence[Any]) -> tuple[int, ...]:
        """The value of each length, of dims that agree on it."""
        found = {k: leaves[i].shape[d] for i, d, k in self.dims}
        return tuple(found[k] for k in sorted(found))

    def rest(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What calls of one program have in common: shapes, but for the lengths."""
        free = {(i, d): f"length {k}" for i, d, k in self.dims}
        return tuple(
            tuple(free.get((i, d), n) for d, n in enumerate(x.shape))
            for i, x in enumerate(leaves)
            if isinstance(x, Tensor)
        )


def _numbered(dims: Sequence[tuple[int, int, Any]]) -> tuple[tuple[int, int, int], ...]:
    numbers: dict[Any, int] = {}
    return tuple((i, d, numbers.setdefault(k, len(numbers))) for i, d, k in dims)


Call = tuple[tuple[Any, ...], Mapping[str, Any]]

Build = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], int], Built]
"""Captures, plans and writes program number n for one call: `build(model, args, kwargs, n)`."""

BuildFree = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Free, int], Built]
"""The same with free sizes, before n. Raises CaptureError where these cannot be."""

_hybrids: dict[tuple[str, int], tuple[str, str]] = {}


class Runner:
    """What the modules of one sharded tree share. `most` programs are kept, those used last."""

    def __init__(
        self,
        original: nn.Module,
        mesh: DeviceMesh,
        build: Build,
        build_free: BuildFree | None = None,
        *,
        parts: bool = False,
        most: int = 32,
    ) -> None:
        self.original, self.mesh, self.build, self.build_free = original, mesh, build, build_free
        self.parts, self.group, self.most = parts, mesh.get_group(), most
        self.made = 0
        """Programs made so far: the number of the next."""
        self.kept: dict[int, Built] = {}
        """By number; that used last at the end."""
        self.exact: dict[Any, int] = {}
        self.ranged: dict[Any, list[int]] = {}
        self.free: dict[Any, Free] = {}
        self.tables: dict[tuple[str, int, int], Any] = {}
        self.keeps: dict[int, dict[str, str]] = {}
        self.certificates: dict[tuple[int, ...], Any] = {}
        self.example: Built | None = None
        self.current: tuple[int, tuple[int, ...]] = (0, ())
        """Program and lengths last run."""
        self.now: Built | None = None
        self.root: nn.Module = original
        self.scope: dict[str, Any] = {
            "aten": torch.ops.aten,
            "torch": torch,
            "device": torch.device,
            "ranks": collectives,
            "attention": sharded_attention,
            "GROUP": self.group.group_name,
            "GROUPS": {},
        }

    # --- which program ------------------------------------------------------------------------

    def find(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
        """The program of a call, made if there is none, and the call's lengths as it wants them."""
        kwargs = dict(sorted(kwargs.items()))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        kind = kind_of(leaves, spec, modes_of(self.root))
        shapes = kind, tuple(tuple(x.shape) for x in leaves if isinstance(x, Tensor))
        number, why = self.exact.get(shapes), ""
        if number is None:
            number, why = self._ranged((args, kwargs), kind, leaves)
        if number is None:
            number = self._make(self.build, (args, kwargs), why)
            self.exact[shapes] = number
            if kind not in self.free:
                sizes = {n for s in self.kept[number].plan.sites for n in (s.q_size, s.k_size)}
                self.free[kind] = Free.of(leaves, sizes)
        if next(reversed(self.kept)) != number:
            self.kept[number] = self.kept.pop(number)
        built = self.kept[number]
        lengths = built.read(leaves)
        if self.free[kind].varied:
            self._agree(
                f"{number} {lengths}",
                "the comparison of the ranks' lengths",
                "the ranks were given batches of different lengths",
                "the same whole batch on every rank of a sequence",
                "read the data by the place in the data dim of the mesh",
            )
        self.current, self.now = (number, lengths), built
        return number, lengths

    def _ranged(self, call: Call, kind: Any, leaves: Sequence[Any]) -> tuple[int | None, str]:
        """The program of a bucket of lengths; None, and why, if there can be none."""
        known = self.free.get(kind)
        if known is None or self.build_free is None:
            return None, ""
        known = self.free[kind] = known.after(leaves)
        free = known.only_varied()
        if not free.dims:
            return None, ""
        rest = kind, free, free.rest(leaves)
        for number in self.ranged.get(rest, ()):
            if self.kept[number].takes(leaves):
                return number, ""
        build = self.build_free

        def make(model: nn.Module, args: Any, kwargs: Any, number: int) -> Built:
            return build(model, args, kwargs, free, number)

        try:
            number = self._make(make, call)
        except CaptureError as error:  # a program of this length will do
            return None, f"a program of this length alone: {error.found}"
        self.ranged.setdefault(rest, []).append(number)
        built = self.kept[number]
        if built.certify is not None:
            self.certificates[number, *built.read(leaves)] = built.certificate
        return number, ""

    def _make(self, build: Build, call: Call, note: str = "") -> int:
        """Capture and plan for one call, each module in the mode (training or not) of its copy."""
        modes, number = _modes(self.original), self.made
        _set_modes(self.original, _modes(self.root))
        try:
            built = build(self.original, *call, number)
        finally:
            _set_modes(self.original, modes)
        if note:
            notes = (*built.plan.notes, note)
            built = attrs.evolve(built, plan=attrs.evolve(built.plan, notes=notes))
        self.example = self.example or built
        self._agree(
            "\n".join(f.source for f in built.functions),
            "the comparison of the ranks' plans",
            "the ranks have made different plans",
            "the same model, batch shapes, memory and links on every rank",
            "name the links: links= a preset, or one file that all ranks read",
        )
        self.made += 1
        self._add(number, built)
        while len(self.kept) > self.most:
            self._drop(next(iter(self.kept)))
        return number

    def _agree(self, text: str, what: str, found: str, allowed: str, fix: str) -> None:
        """Ranks that run different texts would wait for one another for ever. Raises InputError."""
        mine = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        both = torch.tensor([mine, -mine], device=self.mesh.device_type)
        group = self.group.group_name
        if not bool((collectives.all_reduce(both, "max", group, what) == both).all()):
            where = f"rank {collectives.rank_of(group)}"
            raise InputError(found, where=where, allowed=allowed, fix=fix)

    # --- what is kept of it -------------------------------------------------------------------

    def _add(self, number: int, built: Built) -> None:
        self.kept[number] = built
        regions = built.plan.memory.regions if built.plan.memory is not None else ()
        self.keeps[number] = {region.module: how for region, how in regions}
        for item in built.program.inputs:
            if item.kind == "constant":
                name = constant_name(item.target, number)
                self.root.register_buffer(name, built.program.state[item.target], persistent=False)
        for choice in built.plan.chosen:
            if choice.way == "hybrid":
                self._groups(choice.ring_of)
        for function in built.functions:
            key = function.module, number, function.call
            self.tables[key] = _compiled(function, number, self.scope)

    def _drop(self, number: int) -> None:
        built = self.kept.pop(number)
        self.exact = {k: n for k, n in self.exact.items() if n != number}
        self.ranged = {k: left for k, n in self.ranged.items() if (left := _without(n, number))}
        self.certificates = {k: c for k, c in self.certificates.items() if k[0] != number}
        del self.keeps[number]
        for function in built.functions:
            del self.tables[function.module, number, function.call]
            linecache.cache.pop(_name(function, number), None)
        for item in built.program.inputs:
            if item.kind == "constant":
                delattr(self.root, constant_name(item.target, number))

    def function(self, path: str, number: int, call: int) -> Any:
        """Raises InputError where the program has been dropped since the forward."""
        found = self.tables.get((path, number, call))
        if found is None:
            raise InputError(
                "the program of this call was dropped before its backward",
                where=path,
                allowed=f"backward within {self.most} programs after forward",
                fix="keep more: quire.shard(…, programs=…)",
            )
        return found

    def certificate(self) -> Any:
        """Of the length last run: proved when first asked for."""
        assert self.now is not None
        number, lengths = self.current
        if self.now.certify is None:
            return self.now.certificate
        key = (number, *lengths)
        if key not in self.certificates:
            self.certificates[key] = self.now.certify(lengths)
        return self.certificates[key]

    def _groups(self, ring_of: int) -> None:
        """The groups of a hybrid, made once for a mesh: making one is a collective itself."""
        key = (self.group.group_name, ring_of)
        if key not in _hybrids:
            shape = (ring_of, self.mesh.size() // ring_of)
            sub = self.mesh._unflatten(0, shape, ("ring", "ulysses"))
            _hybrids[key] = (
                sub["ring"].get_group().group_name,
                sub["ulysses"].get_group().group_name,
            )
        names = self.scope["GROUPS"]
        names["ring", ring_of], names["ulysses", ring_of] = _hybrids[key]


def constant_name(target: str, number: int = 0) -> str:
    """The root's buffer that holds a constant lifted out of the model's code, for a program."""
    of = f"_{number}" if number else ""
    return f"quire_constant_{target.replace('.', '_')}{of}"


def modes_of(model: nn.Module) -> tuple[bool, ...]:
    """Of each module, whether it trains."""
    return tuple(m.training for m in model.modules())


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: m.training for name, m in model.named_modules()}


def _set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)


def kind_of(leaves: Sequence[Any], spec: pytree.TreeSpec, modes: tuple[bool, ...]) -> Any:
    """What a program rests on beside the sizes of its inputs."""
    shown = tuple((x.dim(), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves)
    return shown, str(spec), modes


def _without(numbers: list[int], number: int) -> list[int]:
    return [n for n in numbers if n != number]


def _name(function: Function, number: int) -> str:
    return f"<quire {function.module or 'root'} program {number} call {function.call}>"


def _compiled(function: Function, number: int, scope: dict[str, Any]) -> Any:
    name = _name(function, number)
    linecache.cache[name] = (len(function.source), None, function.source.splitlines(True), name)
    found: dict[str, Any] = {}
    exec(compile(function.source, name, "exec"), scope, found)
    return found["forward"]
