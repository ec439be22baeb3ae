"""The text of the ways to spread attention, read for a rank that is not known.

`runtime/sharded_attention.py` is run on symbolic tensors: how heads and rows are dealt, what
travels where in all-to-alls and all-gathers, the table of rows handed to the kernel, and the way
back. Shown is that it computes what `attend.py` says, for the shapes and orders of a call:

    1. on the rank (m, u) the kernel sees head u·e + h of the queries, its own key head, every place
       of keys and values once, and each query at its own place;
    2. what comes back to a rank is, row by row and head by head, what the kernel made of it.

The kernels themselves (attention of whole sequences, `ring_attention`) mean what they say, and read
the leaves of a mask, which are whole on every rank, by places. Ranks
of a hybrid are m·U + u: place u of U in its Ulysses group, m of R in its ring.
"""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.poly import ZERO, Poly, atom_of, poly, variable
from quire.verify.same import same
from quire.verify.shard.attend import Call, attended
from quire.verify.shard.length import Size, as_poly, number
from quire.verify.shard.order import RANK, Mesh, Order, Place, edges, place, ranked
from quire.verify.shard.tensor import Local, Torch, call
from quire.verify.value import NotShown, Value, build, cut, require

ATTENTION, LAYOUT = "quire.runtime.sharded_attention", "quire.plan.layout"
RING, DRAWS = "quire.runtime.ring_attention", "quire.runtime.draws"


def shown(made: Call, texts: Mapping[str, str]) -> None:
    """Raises NotShown, NoMeaning if the text is not shown to do what it says."""
    _Way(made, texts).run()


class _Way:
    def __init__(self, made: Call, texts: Mapping[str, str]) -> None:
        self.made, self.texts = made, texts
        self.rings = {"hybrid": made.ring_of, "ring": made.ranks}.get(made.way, 1)
        self.dealt = made.ranks // self.rings
        self.m, self.u = (
            variable(RANK, [0], [n - 1]) if n > 1 else ZERO for n in (self.rings, self.dealt)
        )
        self.mesh = Mesh(made.ranks, self.m * self.dealt + self.u)
        self.rows = Order(made.q_size, made.ranks, made.ring)
        self.keys = Order(made.k_size, made.ranks, made.ring)
        self.share = self.dealt if made.way in ("ulysses", "hybrid") else 1
        """Ranks that heads are dealt to."""
        self.leaves = [
            Local(cut(f"leaf {k}", [as_poly(n) for n in shape], torch.bool))
            for k, shape in enumerate(made.leaves)
        ]
        self.calls = 0

    def run(self) -> None:
        made = self.made
        module = self._module()
        q, k, v = (self._local(*x) for x in self._tensors())
        given: dict[str, Any] = {
            "band": made.band, "scale": made.scale, "q_size": made.q_size, "k_size": made.k_size,
            "ranks": made.ranks, "ring": made.ring, "rule": made.rule, "leaves": self.leaves,
        }  # fmt: skip
        if made.way == "hybrid":
            given |= {"ring_of": made.ring_of, "ulysses_group": "u", "ring_group": "m"}
        else:
            given["group"] = "m" if made.way == "ring" else "u"
        out = getattr(module, made.way)(q, k, v, **given)
        require(self.calls == 1, f"{self.calls} kernels")
        self._back(out.value)

    def _tensors(self) -> list[tuple[str, tuple[Size, ...], Order]]:
        made = self.made
        return [("q", made.q, self.rows), ("k", made.k, self.keys), ("v", made.v, self.keys)]

    def _local(self, name: str, shape: tuple[Size, ...], order: Order) -> Local:
        require(shape[2] == order.rows, "rows of another number")
        return Local(self.mesh.seen(Place(2, order), _cut(name, shape, order)))

    # --- what the text sees -------------------------------------------------------------------

    def _module(self) -> Any:
        table = _run(LAYOUT, self.texts[LAYOUT], {})
        flat = _run("flat", _function(self.texts[RING], "flat"), {})
        functional = types.SimpleNamespace(
            pad=lambda x, by: call(torch.ops.aten.constant_pad_nd.default, (x, list(by)), {}),
            scaled_dot_product_attention=self._sdpa,
        )
        return _run(
            ATTENTION,
            self.texts[ATTENTION],
            {
                "torch": _Torch(), "torch.nn.functional": functional, LAYOUT: table,
                "quire.runtime.collectives": types.SimpleNamespace(
                    all_to_all=self._all_to_all, all_gather=self._all_gather
                ),
                RING: types.SimpleNamespace(flat=flat.flat, ring_attention=self._ring),
                DRAWS: types.SimpleNamespace(apart=_drawn),
            },
        )  # fmt: skip

    def _all_to_all(self, x: Local, group: str) -> Local:
        require(group == "u", f"an all-to-all over {group}")
        require(x.shape[0] == self.dealt, f"{x.shape[0]} parts for {self.dealt} ranks")
        part = variable("w", [0], [self.dealt - 1])

        def element(idx: list[Poly]) -> Any:
            sent = _put(x.value.at([part, *idx[1:]]), {self.u: idx[0]})
            return _put(sent, {part: self.u})

        return Local(build(x.value.shape, x.dtype, element))

    def _all_gather(self, x: Local, ranks: int, group: str) -> Local:
        require(group == "u" and ranks == self.dealt, f"an all-gather over {ranks} of {group}")
        own = x.shape[0]

        def element(idx: list[Poly]) -> Any:
            p, i = divmod_(idx[0], as_poly(own))
            return _put(x.value.at([i, *idx[1:]]), {self.u: p})

        return Local(build([as_poly(own) * ranks, *x.value.shape[1:]], x.dtype, element))

    # --- the kernels --------------------------------------------------------------------------

    def _sdpa(
        self, q: Local, k: Local, v: Local, *, is_causal: bool, scale: float, dropout_p: float,
        enable_gqa: bool,
    ) -> Local:  # fmt: skip
        require(not self.made.rule, "a mask that is lost")
        require(dropout_p == 0 and (enable_gqa or q.shape[1] == k.shape[1]), "another attention")
        require(q.shape[2] == self.rows.size, "other queries than all")
        query, key, value = (
            self._whole(x.value, o) for x, o in ((q, self.rows), (k, self.keys), (v, self.keys))
        )
        band = (None, 0 if is_causal else None)
        return self._kernel(query, key, value, lambda row: row, band, scale)

    def _ring(
        self, q: Local, k: Local, v: Local, leaves: Any, rule: str, left: Any, right: Any,
        scale: float, q_runs: list[Size], k_runs: list[Size], hops: int, group: str,
    ) -> tuple[Local, Local]:  # fmt: skip
        handed = len(leaves) == len(self.leaves) and all(map(_is, leaves, self.leaves))
        require(rule == self.made.rule and handed, "a mask that is not the one given")
        if group == "":
            for runs, order, x in ((q_runs, self.rows, q), (k_runs, self.keys, k)):
                require(runs == [0, 0, 0, order.size] == [0, 0, 0, x.shape[2]], "other rows")
            query, key, value = (
                self._whole(x.value, o) for x, o in ((q, self.rows), (k, self.keys), (v, self.keys))
            )
            out = self._kernel(query, key, value, lambda row: row, (left, right), scale)
            return out, out
        members = self.made.ranks if hops == 1 else self.rings
        require(group == ("u" if hops == 1 else "m"), f"a kernel over {group}")
        require(hops in (1, self.rings), f"{hops} hops")
        own, every = q.shape[2], k.shape[2]
        _table(q_runs, self.rows, members, own)
        _table(k_runs, self.keys, hops, every)
        first = (self.m if hops > 1 else self.u) * as_poly(own)
        key, value = (self._by_place(x.value, every, hops) for x in (k, v))

        def at(row: Poly) -> Poly:
            return place(self.rows, first + (row if own > 1 else ZERO))

        out = self._kernel(q.value, key, value, at, (left, right), scale)
        return out, out

    def _by_place(self, x: Value, every: Size, hops: int) -> Value:
        """Keys of all members by their place: the rows of a member are told by it."""
        order = self.keys
        rows = as_poly(every)
        f = variable("f", [0], [rows - 1]) if every > 1 else ZERO
        flat = self.m * rows + f if hops > 1 else f
        here = place(order, flat)

        def element(idx: list[Poly]) -> Any:
            found = x.at([*idx[:2], f, *idx[3:]])
            found = _put(found, {here: idx[2]})
            if any(atom_of(x) in found.free for x in (f, self.m) if x is not ZERO):
                raise NotShown("keys that are not told by their place alone")
            return found

        return build([*x.shape[:2], as_poly(order.size), x.shape[3]], x.dtype, element)

    def _whole(self, x: Value, order: Order) -> Value:
        """A sequence put together of runs, as one function of the place: the same on each."""
        size = as_poly(order.size)
        require(x.shape[2] is size, f"{x.shape[2]} places")
        idx = [variable("i", [0], [s - 1]) for s in x.shape]
        cuts = sorted({0, order.size, *edges(0, order.size, order.block)})
        j = variable("j", [0], [size - 1])
        known = None
        for lo, hi in pairwise(cuts):
            k = variable("k", [0], [as_poly(hi - lo) - 1])
            there = k + as_poly(lo)
            piece = x.at([*idx[:2], there, idx[3]])
            if known is None:
                known = t.substitute(piece, {atom_of(k): j - as_poly(lo)})
            elif not same(piece, t.substitute(known, {atom_of(j): there})):
                raise NotShown(f"rows {lo} … {hi} are not put where they belong: {piece}"[:400])
        made = known

        def element(at: list[Poly]) -> Any:
            to = {atom_of(idx[0]): at[0], atom_of(idx[1]): at[1], atom_of(idx[3]): at[3]}
            return t.substitute(made, {**to, atom_of(j): at[2]})

        return build(x.shape, x.dtype, element)

    def _kernel(
        self, query: Value, key: Value, value: Value, at: Any, band: Any, scale: float
    ) -> Local:
        """Shows that each head is the model's; gives what the kernel made, by name."""
        self.calls += 1
        made = self.made
        batch, heads, _, depth = made.q
        each = -(-heads // self.share)
        require(query.shape[1].constant == each, f"{query.shape[1]} heads of {each}")
        own = attended(query, key, value, at, None, band, scale)
        q, k, v = (_cut(*x) for x in self._tensors())
        model = attended(q, k, v, lambda row: row, None, made.band, made.scale)
        b, d = variable("b", [0], [batch - 1]), variable("d", [0], [depth - 1])
        row = variable("row", [0], [query.shape[2] - 1])
        last = as_poly(self.rows.size) - 1
        p = variable("p", [0], [last])
        here = atom_of(at(row))
        for head in range(heads):
            u, h = divmod(head, each)
            mine = t.substitute(own.at([b, poly(h), row, d]), {here: p})
            if self.share > 1:
                mine = _put(mine, {self.u: poly(u)})
            if not same(mine, model.at([b, poly(head), p, d])):
                raise NotShown(f"head {head}: \n     is {mine}"[:1500])
        holder = self.u if self.share > 1 else ZERO

        def element(idx: list[Poly]) -> Any:
            found = t.read("out", [holder, *idx[:2], at(idx[2]), idx[3]])
            return t.ite(t.ge(last - at(idx[2])), found, t.ZERO_)

        shape = [*query.shape[:3], value.shape[3]]
        return Local(build(shape, torch.float32, element))

    # --- the way back -------------------------------------------------------------------------

    def _back(self, out: Value) -> None:
        """This rank's rows of all heads: row i of head h is what rank h div e made of it."""
        batch, heads, rows, _ = self.made.q
        width = self.made.v[3]
        sizes = list(map(number, out.shape))
        require(sizes == [batch, heads, rows, width], f"a result of shape {sizes}")
        each = -(-heads // self.share)
        b, h, d = (variable(n, [0], [s - 1]) for n, s in (("b", batch), ("h", heads), ("d", width)))
        u, own = divmod_(h, each)

        def want(p: Poly) -> Any:
            return t.read("out", [u, b, own, p, d])

        i = variable("i", [0], [as_poly(rows) - 1])
        p = variable("p", [0], [as_poly(self.rows.size) - 1])
        here = place(self.rows, self.mesh.flat(self.rows, i))
        mine = t.substitute(out.at([b, h, i, d]), {atom_of(here): p})
        if not ranked(mine) and same(mine, want(p)):
            return
        for rank in range(self.made.ranks):
            m, place_ = divmod(rank, self.dealt)
            to = {self.m: poly(m), self.u: poly(place_)}
            cuts = sorted({0, rows, *edges(rank * rows, rows, self.rows.block)})
            for lo, hi in pairwise(cuts):
                first = self.rows.at(rank * rows + lo)
                count = min(hi - lo, self.rows.size - first)
                if count < 1:
                    continue
                k = variable("k", [0], [as_poly(count) - 1])
                mine = _put(out.at([b, h, k + as_poly(lo), d]), to)
                if not same(mine, want(k + as_poly(first))):
                    raise NotShown(f"rank {rank}, rows from {lo}: {mine}"[:600])


def _cut(name: str, shape: tuple[Size, ...], order: Order) -> Value:
    return cut(name, [*shape[:2], as_poly(order.size), shape[3]], torch.float32)


def _is(a: Any, b: Any) -> bool:
    return a is b


def _put(x: Any, to: Mapping[Poly, Poly]) -> Any:
    """`x` with variables replaced; those that are 0 have nothing to replace."""
    return t.substitute(x, {atom_of(a): b for a, b in to.items() if a is not ZERO})


def _table(numbers: list[Size], order: Order, members: int, own: Size) -> None:
    """That `member, at, start, count, …` says of each row where it is, and leaves none out."""
    require(own * members == order.padded, f"{own} rows of {members} members")
    total = 0
    taken = dict.fromkeys(range(members), 0)
    for k in range(0, len(numbers), 4):
        who, at, start, count = numbers[k : k + 4]
        require(who in taken and taken[who] <= at and at + count <= own, "rows held twice")
        taken[who] = at + count
        total += count
        first = who * own + at
        for lo, hi in pairwise(sorted({0, count, *edges(first, count, order.block)})):
            fits = order.at(first + lo) == start + lo and order.at(first + hi - 1) == start + hi - 1
            require(fits, f"rows of member {who} from {at} are not at {start}")
    require(total == order.size, f"{total} rows of {order.size}")


class _Torch(Torch):
    Tensor = Local


def _drawn(*_: Any) -> Any:
    raise NotShown("what is drawn")


def _run(name: str, text: str, known: Mapping[str, Any]) -> Any:
    """A module from its text, with what it imports of torch and Quire replaced."""

    def find(
        wanted: str, scope: Any = None, local: Any = None, names: Any = (), level: int = 0
    ) -> Any:
        if wanted in known:
            return known[wanted]
        if wanted.startswith(("quire", "torch")):
            raise ImportError(wanted)
        return __import__(wanted, scope, local, names, level)

    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": find}
    exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    return module


def _function(text: str, name: str) -> str:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return "from __future__ import annotations\n" + ast.unparse(node)
    raise NotShown(f"no function {name}")
