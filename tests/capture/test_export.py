"""A model as a `Program`: graph, inputs, sizes, places in the user's source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from quire.capture.export import capture, export, from_exported
from quire.capture.program import Program, evaluate
from quire.errors import CaptureError

aten = torch.ops.aten
LENGTHS = Dim("length", min=2, max=64)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("shift", torch.ones(16), persistent=False)

    def forward(
        self, x: Tensor, flag: bool = True, *, mask: Tensor, extra: Any = None
    ) -> dict[str, Any]:
        h = self.up(x) * self.scale + self.shift
        if extra is not None:
            h = h + extra["a"][0]
        return {"h": F.gelu(h) * mask[..., None], "flag": flag}


def program() -> Program:
    kwargs = {"mask": torch.ones(2, 5), "extra": {"a": [torch.ones(16)], "b": 3}}
    return capture(Model().eval(), (torch.randn(2, 5, 8), True), kwargs)


def targets(found: Program) -> list[Any]:
    return [op.target for op in found.ops.values()]


def test_inputs_by_kind_and_path() -> None:
    found = program()
    assert {i.target: i.kind for i in found.inputs} == {
        "up.weight": "parameter",
        "up.bias": "parameter",
        "scale": "buffer",
        "shift": "buffer",
        "args[0]": "user",
        "mask": "user",
        "extra['a'][0]": "user",
    }
    assert found.constants == {"args[1]": True, "extra['b']": 3}
    assert [i.target for i in found.users_inputs()] == ["args[0]", "mask", "extra['a'][0]"]
    assert set(found.state) == {"up.weight", "up.bias", "scale", "shift"}


def test_no_input_goes_by_a_name_that_programs_use() -> None:
    class Rows(nn.Module):
        def forward(self, rows: Tensor, w: Tensor, *, ranks: Tensor, x: Tensor) -> Tensor:
            return rows + w + ranks + x

    one = torch.ones(3)
    found = capture(Rows(), (one, one), {"ranks": one, "x": one})
    names = [i.node.name for i in found.users_inputs()]
    assert names == ["rows_input", "w_input", "ranks_input", "x"]
    assert found.paths == ("args[0]", "args[1]", "ranks", "x")


def test_outputs_keep_their_structure() -> None:
    found = program()
    assert len(found.outputs) == 2
    assert found.outputs[1] is True
    assert torch.utils._pytree.tree_unflatten([0, 1], found.out_spec) == {"h": 0, "flag": 1}


def test_operands_and_arguments_by_name() -> None:
    found = program()
    linear = next(op for op in found.ops.values() if op.target is aten.linear.default)
    assert [o.shape for o in linear.operands] == [(2, 5, 8), (16, 8), (16,)]
    assert linear["weight"] is linear.operands[1]
    assert linear.out.shape == (2, 5, 16)
    assert linear.out.nbytes == 2 * 5 * 16 * 4
    assert not linear.is_view
    view = next(op for op in found.ops.values() if op.target is aten.unsqueeze.default)
    assert view.is_view


def test_places_are_in_the_users_source() -> None:
    found = program()
    places = {op.target: op.where for op in found.ops.values()}
    linear, gelu = places[aten.linear.default], places[aten.gelu.default]
    assert (linear.module, linear.kind) == ("up", "Linear")
    assert (gelu.module, gelu.kind) == ("", "Model")
    for where in (linear, gelu):
        assert Path(where.file) == Path(__file__)
    assert "self.up(x)" in linear.code
    assert "F.gelu(h)" in gelu.code
    assert f"{__file__}:{gelu.line}" in str(gelu)


def test_composites_stay_whole() -> None:
    class Composite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n, self.g, self.c = nn.LayerNorm(8), nn.GroupNorm(2, 4), nn.Conv1d(4, 4, 3)

        def forward(self, q: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(q, q, q, is_causal=True)
            y = self.n(y).softmax(-1).squeeze(1)
            return F.rms_norm(self.g(y), (8,)).sum() + F.silu(self.c(y)).sum()

    found = targets(capture(Composite().eval(), (torch.randn(2, 1, 4, 8),)))
    assert aten.scaled_dot_product_attention.default in found
    assert aten.layer_norm.default in found
    assert aten.softmax.int in found
    assert aten.group_norm.default in found
    assert aten.rms_norm.default in found
    assert aten.silu.default in found


def test_writes_in_place_become_functional() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            y[:, 1:3] += 1
            y.mul_(2).relu_()
            return y

    x = torch.randn(4, 5)
    found = capture(InPlace(), (x,))
    assert not any(op.target._schema.is_mutable for op in found.ops.values())


def test_what_does_no_work_is_dropped() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(x, 0.5, training=self.training)
            y = y.to(torch.float32).contiguous().view(4, 5)
            torch.exp(y)
            return y + 1

    assert targets(capture(Idle().eval(), (torch.randn(4, 5),))) == [aten.add.Tensor]


def test_a_copy_of_an_input_stays_one() -> None:
    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    assert targets(capture(Copy(), (torch.randn(4),))) == [aten.clone.default]


# Lengths


def test_lengths_have_ranges_and_a_source() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(1, 2)).view(x.shape[0], -1)

    found = capture(Pairs(), (torch.randn(2, 5, 8),), dynamic_shapes={"x": {1: LENGTHS}})
    (symbol,) = found.symbols
    (user,) = found.users_inputs()
    assert (symbol.lo, symbol.hi, symbol.hint, symbol.dim) == (2, 64, 5, 1)
    assert symbol.source is user.node
    out = found.info(found.outputs[0])
    assert out.shape == (2, symbol.name**2)
    assert out.at({symbol.name: 7}).shape == (2, 49)
    assert evaluate(out.nbytes, {symbol.name: 7}) == 2 * 49 * 4
    assert found.hints == {symbol.name: 5}


def test_a_static_model_has_no_symbols() -> None:
    assert program().symbols == ()


# What cannot be captured


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 0:
            return x
        return -x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x + 1


class DataSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] * 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Branch(), r"if x\.max\(\) > 0"),
        (Counts(), "changes its buffer mutation calls"),
        (WritesInput(), "changes its user input mutation"),
        (DataSize(), "depend on the data"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_refused_with_the_line_and_a_way_out(model: nn.Module, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        capture(model.eval(), (torch.randn(4),))
    assert caught.value.fix


def test_an_exported_program_gives_the_same() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(3, 4)
    assert targets(from_exported(export(model, (x,)))) == targets(capture(model, (x,)))
