"""Errors carried through a graph: what is measured lies within."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quire.capture.decode import capture_decode
from quire.capture.export import export, from_exported
from quire.kernel.compile import compile_program
from quire.runtime.native import NativeKernel
from quire.verify.first_order import bounds
from tests.kernel.models import causal_lm


def test_one_sum() -> None:
    model, x = nn.Linear(300, 4, bias=False).eval(), torch.randn(2, 300)
    program = from_exported(export(model, (x,)))
    (found,) = bounds(program, [x], [(1, 3)])
    size = float((x[1].abs() * model.weight[3].detach().abs()).sum())
    assert found == pytest.approx(301 * 2**-24 * size, rel=0.01)


def test_errors_add_up() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 3)).eval()
    x = torch.randn(2, 16)
    parts = [from_exported(export(m, (x,))) for m in (model, model[:1])]
    whole, first = (bounds(p, [x], [(0, 0)])[0] for p in parts)
    assert 0 < first < whole < 1e-3


def test_errors_of_earlier_calls() -> None:
    class Total(nn.Module):
        def forward(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            kept.add_(x)
            return kept * 3.0

    x, kept = torch.rand(4), torch.rand(4)
    program = from_exported(export(Total(), (x, kept)), writes=True)
    calls = [(torch.rand(4), torch.rand(4)) for _ in range(3)]
    *before, last = calls
    sums = [float(x[2] + kept[2]) for x, kept in calls]
    (found,) = bounds(program, last, [(2,)], before=before)
    assert found == pytest.approx(2**-24 * 3 * (sum(sums) + sums[-1]), rel=1e-5)
    (alone,) = bounds(program, last, [(2,)])
    assert alone == pytest.approx(2**-24 * 6 * sums[-1], rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_logits_lie_within_the_bound(name: str) -> None:
    length, at = 48, 20
    model = causal_lm(name)
    step = capture_decode(model, length, 2)
    longest = {s.name: 2 for s in step.program.symbols}
    fast = NativeKernel(compile_program(step.program, "", name, longest), threads=2)
    pick = torch.Generator().manual_seed(0)
    caches = [
        torch.randn(2, *shape, generator=pick) for shape in (*step.key_shapes, *step.value_shapes)
    ]
    ids = torch.randint(300, (2, 1), generator=pick)
    inputs = [ids, torch.full((2,), at), torch.zeros(2, dtype=torch.long), *caches]
    names = [i.target for i in step.program.users_inputs()]
    (got, *_) = fast({k: v.clone() for k, v in zip(names, inputs, strict=True)})

    exact = step.program
    double = [x.double() if x.is_floating_point() else x for x in inputs]
    want = in_double(exact, double)
    off = (got.double() - want).abs().flatten()
    worst = [int(k) for k in off.topk(3).indices]
    shape = got.shape
    places = [tuple(int(i) for i in torch.unravel_index(torch.tensor(k), shape)) for k in worst]
    room = bounds(exact, inputs, places)
    for k, most in zip(worst, room, strict=True):
        assert float(off[k]) <= most, (float(off[k]), most)
        assert most < 0.05 * float(want.abs().max())  # and it says something


def in_double(program, inputs) -> torch.Tensor:
    """Output 0 of the graph in float64."""
    given = iter(inputs)
    values = {
        i.node: next(given) if i.kind == "user" else _double(program.state[i.target])
        for i in program.inputs
    }
    order = [n for n in program.graph.nodes if n.op == "placeholder"]

    class InDouble(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if kwargs.get("dtype") == torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
            args = tuple(torch.float64 if isinstance(a, torch.dtype) else a for a in args)
            return super().call_function(target, args, kwargs)

    module = torch.fx.GraphModule(nn.Module(), program.graph)
    run = InDouble(module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*[values.get(n) for n in order])
    return run.env[program.outputs[0]]


def _double(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return x.double() if x.is_floating_point() else x
