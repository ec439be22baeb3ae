"""A training step of P simulated ranks run exactly, in a finite field, beside the model's.

Forward and backward are torch's own autograd on field elements: the text that ranks run, the
runtime's collectives and attention with their registered backwards, and its reduction of
gradients. Loss, outputs and every parameter's gradient are compared without tolerance. Nothing is
shared with the symbolic proof but the table of places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from quire.capture.program import Program
from quire.verify import field, field_grads
from quire.verify.exact import ExactRun, Field
from quire.verify.field_ops import Unsupported
from quire.verify.shard import field_routes
from quire.verify.shard.order import Place
from quire.verify.shard.simulate import Groups, Meeting, Mismatch, Runtime
from quire.verify.shard.task import Hint, Source

COLLECTIVES, ATTENTION = "quire.runtime.collectives", "quire.runtime.sharded_attention"
BLOCKS, REDUCTION = "quire.runtime.block_attention", "reduction"
WEIGHT_MOST = 1 << 18

FAILS = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, NameError, KeyError)
"""What a run that cannot be run may raise."""

assert field_grads and field_routes


def exact_shard_run(
    program: Program,
    sources: Sequence[Source],
    names: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
    *,
    ranks: int,
    outputs: Sequence[Hint],
    seeds: int = 1,
    most: int = WEIGHT_MOST,
    lengths: tuple[int, ...] = (),
) -> ExactRun:
    """`texts` are the runtime's files by module name, and under "reduction" the class that reduces
    gradients ("" if that is left to others, who take the mean). Programs whose inputs have more
    than `most` elements are not run. `lengths` are given to the root's function after the user's
    tensors."""
    total = sum(math.prod(map(int, program.info(i.node).shape)) for i in program.inputs)
    chance = min(1.0, 2 * len(program.ops) / field.P) ** seeds
    if total > most:
        return ExactRun(None, f"{total} elements are too many to run exactly", 0, 1.0)
    for seed in range(seeds):
        try:
            why = _Run(program, sources, names, texts, ranks, outputs, seed, lengths).differs()
        except (Unsupported, *FAILS) as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            return ExactRun(None, text, seed, 1.0)
        if why:
            return ExactRun(False, f"{why}, {ranks} ranks, seed {seed}", seed + 1, 0.0)
    return ExactRun(True, "", seeds, chance)


class _Run:
    def __init__(
        self, program: Program, sources: Any, names: Any, texts: Any, ranks: int, outputs: Any,
        seed: int, lengths: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.lengths = lengths
        self.program, self.sources, self.texts = program, sources, texts
        self.ranks, self.outputs = ranks, outputs
        self.by_name = {name: t for t, many in names.items() for name in many}
        self.inputs = _inputs(program, seed)
        self.targets = {i.target: i.node for i in program.inputs if i.kind != "user"}
        self.trained = [
            i.target for i in program.inputs
            if i.kind == "parameter" and program.state[i.target].requires_grad
        ]  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        made = {t: self.inputs[n].clone() for t, n in self.targets.items()}
        for target in self.trained:
            made[target].requires_grad_()
        return made

    def differs(self) -> str:
        with Field():
            want, grads = self._alone()
        meeting = Meeting(self.ranks)
        runtime = Runtime(self.texts, meeting, replaced)
        with Field():
            runtime.module(ATTENTION)
            runtime.module(COLLECTIVES)
        try:
            found = meeting.run(lambda rank: self._ranks(runtime, meeting))
        except Mismatch as error:
            return str(error)[:300]
        except FAILS as error:
            raise Unsupported(f"ranks fail: {type(error).__name__}: {error}"[:300]) from error
        for rank, (got, own) in enumerate(found):
            for k, (g, w, at) in enumerate(zip(got, want, self.outputs, strict=True)):
                if isinstance(w, Tensor) and not _rows_same(g, w, at, rank):
                    return f"output {k} of rank {rank} differs"
            for target, grad in grads.items():
                if not _grad_same(own[target], grad):
                    return f"the gradient of {target} on rank {rank} differs"
        return ""

    def _alone(self) -> tuple[list[Any], dict[str, Any]]:
        state = self.state()
        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        of = {node: target for target, node in self.targets.items()}
        given = [state[of[n]] if n in of else self.inputs.get(n) for n in nodes]
        made = _Model(self.program).run(*given)
        results = list(made) if isinstance(made, list | tuple) else [made]
        _backward(results)
        return _plain(results), {t: state[t].grad for t in self.trained}

    def _ranks(self, runtime: Runtime, meeting: Meeting) -> tuple[list[Any], dict[str, Any]]:
        with Field():
            state = self.state()
            scope = {
                "aten": Aten(), "torch": torch, "device": torch.device,
                "ranks": runtime.module(COLLECTIVES), "attention": runtime.module(ATTENTION),
                "GROUP": "GROUP", "GROUPS": Groups(),
            }  # fmt: skip
            functions: dict[Any, Any] = {}
            for s in self.sources:
                own: dict[str, Any] = {}
                exec(compile(s.text, f"<{s.module}>", "exec"), scope, own)
                functions[s.module, s.call] = own["forward"]
            users = [self.inputs[i.node].clone() for i in self.program.users_inputs()]
            tree = _Tree("", {n: state[t] for n, t in self.by_name.items()}, functions)
            results = list(functions["", 0](tree, *users, *self.lengths))
            _backward(results)
            grads = {t: state[t].grad for t in self.trained}
            self._reduced(runtime, [state[t] for t in self.trained if state[t].grad is not None])
            return _plain(results), grads

    def _reduced(self, runtime: Runtime, parameters: list[Tensor]) -> None:
        """Gradients to their mean over the ranks: by the text, or as others would."""
        text = self.texts.get(REDUCTION, "")
        collectives = runtime.module(COLLECTIVES)
        if not text:
            for p in parameters:
                assert p.grad is not None
                total = collectives.all_reduce(p.grad, "sum", "GROUP", "")
                p.grad.copy_(total / self.ranks)
            return
        scope: dict[str, Any] = {"torch": torch, "collectives": collectives}
        exec(compile("from __future__ import annotations\n" + text, "<mean>", "exec"), scope)
        own = scope["_Averager"].__new__(scope["_Averager"])
        own.group = _Group(self.ranks)
        own.order = {p: k for k, p in enumerate(parameters)}
        own.ready = list(parameters)
        own._finish()


class _Group:
    group_name = "GROUP"

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


class _Tree:
    """`self` in the text: parameters by name, submodules as calls."""

    def __init__(self, path: str, state: Mapping[str, Tensor], functions: Any) -> None:
        self._path, self._state, self._functions = path, state, functions

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}".strip(".")
        if path in self._state:
            return self._state[path]
        return _Tree(path, self._state, self._functions)

    def __getitem__(self, at: int) -> Any:
        return self.__getattr__(str(at))

    def __call__(self, *given: Any, quire_call: int = 0, quire_program: int = 0) -> Any:
        return self._functions[self._path, quire_call](self, *given)


def _backward(results: Sequence[Any]) -> None:
    """From every loss there is: the results without dims."""
    losses = [x for x in results if isinstance(x, Tensor) and x.dim() == 0 and x.requires_grad]
    if losses:
        torch.autograd.backward(losses)


def _plain(results: Sequence[Any]) -> list[Any]:
    return [x.detach() if isinstance(x, Tensor) else x for x in results]


def _inputs(program: Program, seed: int) -> dict[fx.Node, Tensor]:
    """Field elements, and small integers; every fifth of a user's floats and ints is as it is."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for item in program.inputs:
        info = program.info(item.node)
        shape = [int(s) for s in info.shape]
        if info.dtype.is_floating_point:
            p = torch.randint(0, field.P, shape, generator=generator).double()
            q = torch.randint(0, field.Q, shape, generator=generator).double()
            made[item.node] = field.pack(p, q)
        elif item.kind == "user":
            made[item.node] = torch.randint(0, 2, shape, generator=generator).to(info.dtype)
        else:
            made[item.node] = program.state[item.target].detach().clone()
    return made


def _rows_same(got: Any, want: Tensor, at: Hint, rank: int) -> bool:
    if not isinstance(got, Tensor):
        return False
    if at is None:
        return _same(got, want)
    if got.shape[at.dim] != at.local or want.shape[at.dim] != at.whole:
        return False
    rows, places = _table(at, rank)
    return _same(got.index_select(at.dim, rows), want.index_select(at.dim, places))


def _table(at: Place, rank: int) -> tuple[Tensor, Tensor]:
    """Elements of the dim on this rank, and in the whole, padding left out."""
    n, size = at.order.rows, at.order.size
    rows, places = [], []
    for o in range(at.outer):
        for i in range(n):
            p = at.order.at(rank * n + i)
            if p < size:
                rows += [(o * n + i) * at.scale + e for e in range(at.scale)]
                places += [(o * size + p) * at.scale + e for e in range(at.scale)]
    return torch.tensor(rows, dtype=torch.long), torch.tensor(places, dtype=torch.long)


def _same(g: Tensor, w: Tensor) -> bool:
    if g.shape != w.shape:
        return False
    if not w.is_floating_point():
        return torch.equal(g, w)
    return torch.equal(field.unpack(g)[0], field.unpack(w)[0])


def _grad_same(g: Tensor | None, w: Tensor | None) -> bool:
    if g is None or w is None:
        return g is w
    return _same(g, w)


# --- attention on field elements --------------------------------------------------------------


class _Model(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(fx.GraphModule(torch.nn.Module(), program.graph))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "scaled_dot_product_attention" in str(target):
            return attend(*args, **kwargs)
        if target is torch.ops.aten.view.default:  # strides may be others than the kernel's
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)


class Aten:
    """`aten` of the text, attention taken out."""

    def __getattr__(self, name: str) -> Any:
        return (
            _Attend() if name == "scaled_dot_product_attention" else getattr(torch.ops.aten, name)
        )


class _Attend:
    @staticmethod
    def default(*args: Any, **kwargs: Any) -> Tensor:
        return attend(*args, **kwargs)


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: Any = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention in ops that autograd knows, each with an exact form."""
    if dropout_p:
        raise Unsupported("attention with dropout")
    weights, mass, value = _weights(query, key, value, attn_mask, is_causal, scale)
    return (weights / mass) @ value


def _weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """exp of the scores, their sums over the keys, and values by query head."""
    if q.dim() > 2 and q.shape[-3] != k.shape[-3]:
        k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if causal:
        rows, keys = scores.shape[-2:]
        seen = torch.arange(keys)[None, :] <= torch.arange(rows)[:, None]
        scores = scores.masked_fill(~seen, -math.inf)
    weights = torch.exp(scores)
    return weights, weights.sum(-1, keepdim=True), v


def replaced(name: str, module: Any) -> None:
    """What of the runtime has no exact form: the kernels of one block, and how blocks join."""
    if name == ATTENTION:
        module.scaled_dot_product_attention = attend
    if name == BLOCKS:
        module.block_forward, module.block_backward = block_forward, block_backward
        module.Accumulator = Accumulator


class Accumulator:
    """Blocks joined without logarithms: where the runtime holds the logarithm of a row's mass, here
    is the mass."""

    def __init__(self, q: Tensor) -> None:
        batch, heads, rows, depth = q.shape
        self.out = torch.zeros((batch, heads, rows, depth))
        self.mass = torch.zeros((batch, heads, rows))

    def add(self, q: Any, out: Tensor, mass: Tensor) -> None:
        at = slice(q[0], q[0] + q[2])
        mass = _finite(mass)
        self.out[:, :, at] += out * mass.unsqueeze(-1)
        self.mass[:, :, at] += mass

    def result(self, dtype: Any) -> tuple[Tensor, Tensor]:
        return self.out / self.mass.unsqueeze(-1), self.mass.clone()


def _finite(x: Tensor) -> Tensor:
    with _disable_current_modes():
        return torch.where(torch.isinf(x), 0.0, x)


def block_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    weights, mass, v = _weights(q, k, v, bias, causal, scale)
    return (weights / mass) @ v, mass.squeeze(-1)


def block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, mass: Tensor, bias: Any,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v from this block, given the out and mass of whole rows."""
    groups = q.shape[1] // k.shape[1]
    weights, _, values = _weights(q, k, v, bias, causal, scale)
    keys = k.repeat_interleave(groups, 1)
    p = weights / mass.unsqueeze(-1)
    dv = p.transpose(-1, -2) @ grad
    dp = grad @ values.transpose(-1, -2)
    ds = p * (dp - (grad * out).sum(-1, keepdim=True)) * scale
    dq, dk = ds @ keys, ds.transpose(-1, -2) @ q
    if groups > 1:
        dk, dv = (x.unflatten(1, (-1, groups)).sum(2) for x in (dk, dv))
    return dq, dk, dv
