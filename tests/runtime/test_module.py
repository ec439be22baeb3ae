"""The chunked module as a user meets it: weights, guards, torch's own transforms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import quire
from quire.chunked import Chunked

from ..apply.models import Block, Decoder
from ..apply.run import same

LENGTHS = Dim("length", min=2, max=64)


class Scaled(nn.Module):
    """A model with keywords of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float = 1.0,
        flag: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> Tensor:
        y = self.b(torch.relu(self.a(x))) * scale
        if mask is not None:
            y = y * mask[..., None]
        if extra is not None:
            y = y + extra["a"] + extra["b"][0]
        return y if flag else -y


@pytest.fixture(scope="module")
def decoder(_reference_machine: None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Decoder().eval(), torch.randint(50, (2, 37))


@pytest.fixture(scope="module")
def small(decoder: tuple[nn.Module, Tensor]) -> Chunked:
    model, ids = decoder
    found = quire.chunk(model, (ids,), memory="min")
    assert found.plan.regions
    return found


@pytest.fixture(scope="module")
def any_length(decoder: tuple[nn.Module, Tensor]) -> Chunked:
    model, ids = decoder
    return quire.chunk(model, (ids,), memory=0.6, dynamic_shapes={"ids": {1: LENGTHS}})


@pytest.fixture(scope="module")
def scaled(_reference_machine: None) -> tuple[Chunked, nn.Module, Tensor, dict[str, Any]]:
    model, x = Scaled().eval(), torch.randn(2, 37, 8)
    extra = {"a": torch.randn(8), "b": [torch.randn(8)]}
    kwargs = {"mask": torch.rand(2, 37), "scale": 2.0, "flag": True, "extra": extra}
    return quire.chunk(model, (x,), kwargs, memory="min"), model, x, kwargs


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


# Weights


def test_weights_are_the_models_own(small: Chunked, decoder: tuple[nn.Module, Tensor]) -> None:
    model, _ = decoder
    own, theirs = small.state_dict(), model.state_dict()
    assert list(own) == list(theirs)
    assert all(own[k].data_ptr() == theirs[k].data_ptr() for k in theirs)
    assert {k for k, _ in small.named_buffers()} == {"scale"}
    assert small.head.weight is small.table.weight is model.table.weight
    assert dict(small.named_parameters()).keys() == dict(model.named_parameters()).keys()


def test_weights_can_be_changed_and_loaded() -> None:
    model, other, x = Block().eval(), Block().eval(), torch.randn(1, 37, 16)
    run = quire.chunk(model, (x,), memory="min")
    with torch.no_grad():
        model.up.bias.add_(1.0)
    same(run(x), eager(model, x))
    run.load_state_dict(other.state_dict())
    same(run(x), eager(other, x))


def test_moves_to_another_device(small: Chunked, decoder: tuple[nn.Module, Tensor]) -> None:
    model, ids = decoder
    same(small.to(torch.device("cpu"))(ids), eager(model, ids))
    block = Block().eval()
    moved = quire.chunk(block, (torch.randn(1, 37, 16),), memory="min").to("meta")
    assert all(p.is_meta for p in moved.parameters())
    assert moved(torch.randn(1, 37, 16, device="meta")).shape == (1, 37, 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to(torch.float64),
        lambda m: m.half(),
        lambda m: nn.Sequential(m).to("cpu", torch.bfloat16),
    ],
    ids=["to", "half", "within another module"],
)
def test_refuses_another_dtype_and_stays_as_it_was(
    change: Callable[[nn.Module], Any], small: Chunked, decoder: tuple[nn.Module, Tensor]
) -> None:
    model, ids = decoder
    with pytest.raises(quire.InputError, match=r"would become torch\.") as error:
        change(small)
    assert "quire.chunk(model.to(" in error.value.fix
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    same(small.to(torch.float32)(ids), eager(model, ids))


def test_repr_says_what_it_is(small: Chunked) -> None:
    assert f"{len(small.plan.regions)} regions" in repr(small)


# Modes


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_runs_in_every_mode(
    mode: Callable[[], Any], small: Chunked, decoder: tuple[nn.Module, Tensor]
) -> None:
    model, ids = decoder
    with mode():
        got = small(ids)
    assert not got.requires_grad
    same(got, eager(model, ids))


def test_takes_inputs_that_require_gradients() -> None:
    model, x = Block().eval(), torch.randn(1, 37, 16, requires_grad=True)
    run = quire.chunk(model, (x.detach(),), memory="min")
    same(run(x), eager(model, x))


def test_second_call_is_the_first(small: Chunked, decoder: tuple[nn.Module, Tensor]) -> None:
    _, ids = decoder
    first = small(ids)
    kept = first.clone()
    other = small(ids.flip(0))
    assert torch.equal(first, kept)
    assert torch.equal(other, first.flip(0))


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(
    backend: str, small: Chunked, decoder: tuple[nn.Module, Tensor], fresh_dynamo: None
) -> None:
    model, ids = decoder
    with torch.no_grad():
        same(torch.compile(small, backend=backend, fullgraph=True)(ids), eager(model, ids))


def test_torch_compile_at_other_lengths(fresh_dynamo: None) -> None:
    model, x = Scaled().eval(), torch.randn(1, 37, 8)
    shapes = {"x": {1: LENGTHS}}
    compiled = torch.compile(
        quire.chunk(model, (x,), memory="min", dynamic_shapes=shapes), backend="eager"
    )
    for length in (5, 33):
        x = torch.randn(1, length, 8)
        same(compiled(x), eager(model, x))


def test_torch_export(small: Chunked, decoder: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, ids = decoder
    torch.export.save(torch.export.export(small, (ids,)), tmp_path / "small.pt2")
    again = torch.export.load(tmp_path / "small.pt2").module()
    same(again(ids), eager(model, ids))


# Files


def test_save_and_load(small: Chunked, decoder: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, ids = decoder
    again = quire.load(small.save(tmp_path / "small.pt2"))
    assert again.plan == small.plan
    assert again.source == small.source
    assert list(again.state_dict()) == list(small.state_dict())
    same(again(ids), eager(model, ids))


def test_save_and_load_any_length(
    any_length: Chunked, decoder: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, _ = decoder
    again = quire.load(any_length.save(tmp_path / "small.pt2"))
    assert again.plan == any_length.plan
    for length in (2, 19, 64):
        ids = torch.randint(50, (2, length))
        same(again(ids), eager(model, ids))


def test_a_saved_file_is_an_exported_program(
    small: Chunked, decoder: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, ids = decoder
    exported = torch.export.load(small.save(tmp_path / "small.pt2"))
    same(exported.module()(ids), eager(model, ids))


def test_load_refuses_a_file_without_a_plan(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "plain.pt2")
    with pytest.raises(quire.QuireError, match="holds no plan"):
        quire.load(tmp_path / "plain.pt2")


# Guards


def other(kwargs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**kwargs, **changed}


def test_keywords_in_any_order(scaled: tuple[Chunked, nn.Module, Tensor, dict[str, Any]]) -> None:
    run, model, x, kwargs = scaled
    same(run(x, **dict(reversed(kwargs.items()))), eager(model, x, **kwargs))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"scale": 3.0}, "scale is 3.0"),
        ({"scale": torch.ones(3)}, "scale is "),
        ({"flag": False}, "flag is False"),
        ({"mask": torch.ones(1, 37)}, r"mask is a tensor of torch.float32 \[1, 37\]"),
        ({"mask": torch.ones(2, 37, 1)}, r"mask is a tensor of torch.float32 \[2, 37, 1\]"),
        ({"mask": torch.ones(2, 37).double()}, "mask is a tensor of torch.float64"),
        ({"mask": None}, "mask is a NoneType"),
        ({"extra": {"a": torch.ones(8), "b": [torch.ones(9)]}}, r"extra.*\[9\]"),
        ({"extra": {"a": torch.ones(8)}}, r"extra=dict\); missing: extra\['b'\]\[0\]$"),
        ({"extra": None}, r"missing: extra\['a'\], extra\['b'\]\[0\]; not taken: extra$"),
        ({"more": 1}, r"more=int\); not taken: more$"),
        ({"more": {"a": 1, "b": 2}, "bias": 1}, "not taken: more, bias$"),
    ],
    ids=str,
)
def test_refuses_other_keywords(
    changed: dict[str, Any],
    named: str,
    scaled: tuple[Chunked, nn.Module, Tensor, dict[str, Any]],
) -> None:
    run, _, x, kwargs = scaled
    with pytest.raises(quire.InputError) as error:
        run(x, **{**kwargs, **changed})
    assert re.search(named, error.value.found)
    assert error.value.allowed and error.value.fix


def test_names_the_arguments_left_out_and_those_too_many(
    scaled: tuple[Chunked, nn.Module, Tensor, dict[str, Any]],
) -> None:
    run, _, x, kwargs = scaled
    fewer = {k: v for k, v in kwargs.items() if k not in ("mask", "extra")}
    for args, keywords, said in (
        ((x,), fewer, r"; missing: mask, extra$"),
        ((), kwargs, r"; missing: args\[0\]$"),
        ((x, x), kwargs, r"; not taken: args\[1\]$"),
        ((), {**kwargs, "x": x}, r"; missing: args\[0\]; not taken: x$"),
    ):
        with pytest.raises(quire.InputError) as error:
            run(*args, **keywords)
        assert re.search(said, error.value.found), error.value.found


class Choices(nn.Module):
    def forward(
        self, x: Tensor, flag: bool, cfg: dict[str, Any], *, a: float = 1.0, b: float = 1.0
    ) -> Tensor:
        y = torch.exp(x) * a * b * cfg["k"][0] * cfg["k"][1]
        return y if flag else -y


def test_constants_of_one_value_at_many_places() -> None:
    """As a Hugging Face model gets use_cache=False and output_attentions=False."""
    model, x = Choices(), torch.randn(4, 8)
    args, kwargs = (x, True, {"k": [2.0, 2.0]}), {"a": 2.0, "b": 2.0}
    run = quire.chunk(model, args, kwargs, memory="min")
    same(run(*args, **kwargs), model(*args, **kwargs))
    changed = [
        ((x, False, {"k": [2.0, 2.0]}), kwargs, r"args\[1\] is False"),
        ((x, True, {"k": [2.0, 3.0]}), kwargs, r"args\[2\]\['k'\]\[1\] is 3.0"),
        (args, {"a": 3.0, "b": 2.0}, "a is 3.0"),
        (args, {"a": 2.0, "b": 3.0}, "b is 3.0"),
    ]
    for wrong, keywords, said in changed:
        with pytest.raises(quire.InputError, match=said):
            run(*wrong, **keywords)


@pytest.mark.parametrize(
    "args",
    [
        (),
        (torch.ones(2, 36, dtype=torch.long),),
        (torch.ones(2, 38, dtype=torch.long),),
        (torch.ones(3, 37, dtype=torch.long),),
        (torch.ones(2, 37, 1, dtype=torch.long),),
        (torch.ones(2, 37, dtype=torch.int32),),
        ([1, 2],),
        (7,),
        (torch.ones(2, 37, dtype=torch.long),) * 2,
    ],
    ids=lambda args: ", ".join(str(getattr(a, "shape", a)) for a in args),
)
def test_refuses_other_inputs(args: tuple[Any, ...], small: Chunked) -> None:
    """A longer input than planned, a shorter one, another dtype, another number of them."""
    with pytest.raises(quire.InputError, match=r"args\[0\]"):
        small(*args)


@pytest.mark.parametrize("length", [2, 3, 17, 37, 63, 64])
def test_every_length_in_range(
    length: int, any_length: Chunked, decoder: tuple[nn.Module, Tensor]
) -> None:
    model, _ = decoder
    ids = torch.randint(50, (2, length))
    same(any_length(ids), eager(model, ids))


@pytest.mark.parametrize("shape", [(2, 1), (2, 65), (3, 37)])
def test_no_length_out_of_range(shape: tuple[int, int], any_length: Chunked) -> None:
    with pytest.raises(quire.InputError, match=r"in 2 … 64"):
        any_length(torch.ones(shape, dtype=torch.long))


def test_two_inputs_of_one_length() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.exp(x @ x.transpose(0, 1)) @ y

    both = {"x": {0: LENGTHS}, "y": {0: LENGTHS}}
    run = quire.chunk(
        Added(), (torch.randn(9, 4), torch.randn(9, 4)), memory="min", dynamic_shapes=both
    )
    x, y = torch.randn(13, 4), torch.randn(13, 4)
    torch.testing.assert_close(run(x, y), Added()(x, y))
    with pytest.raises(quire.InputError, match=r"args\[1\] is a tensor of torch.float32 \[12, 4\]"):
        run(x, y[:12])
