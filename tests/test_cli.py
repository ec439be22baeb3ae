"""The command line: targets, options, errors and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import quire
from quire import cli
from quire.capture.options import Options
from quire.capture.target import load_target
from quire.cost.machine import REFERENCE
from quire.errors import BudgetError, QuireError
from quire.plan.plan import Plan, Region

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50}
GPT2 |= {"n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 32}
VIT |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
UNET = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [32, 32]}
UNET |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
WHISPER = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
WHISPER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 50}
WHISPER |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0}
WHISPER |= {"bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
WHISPER |= {"max_target_positions": 8, "architectures": ["WhisperModel"]}
FACTORY = """
import torch
def build(seq=8):
    return torch.nn.Linear(4, 4), (torch.zeros(seq, 4),), {}
def wrong():
    return 3
def broken():
    raise OSError("no weights at hand")
class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x
def branch():
    return Branch(), (torch.zeros(4),), {}
class Mismatch(torch.nn.Module):
    def forward(self, x):
        return x @ x
def mismatch():
    return Mismatch(), (torch.zeros(3, 4),), {}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    def write(data: Any, name: str = "model.json") -> Path:
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with a factory, importable from the current directory only."""
    name = f"models_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in args])


class Small(nn.Module):
    """Stands in for a chunked module."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def report(self, path: Path) -> None:
        path.write_text("<html>")

    def save(self, path: Path) -> None:
        path.write_bytes(b"pt2")


def plan(**changes: Any) -> Plan:
    regions = tuple(
        Region(
            f"r{i}",
            "softmax",
            0,
            ("softmax",),
            100,
            10,
            label="softmax over rows",
            module="h",
            like="r0",
        )
        for i in range(2)
    )
    facts: dict[str, Any] = {"program": "p", "budget": 300, "baseline_bytes": 1000}
    facts |= {"peak_bytes": 250, "baseline_seconds": 2.0, "seconds": 1.0, "order": ()}
    return Plan(**{**facts, "regions": regions, **changes})


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("data", "name", "shape"),
    [
        (GPT2, "input_ids", (2, 24)),  # longer than n_positions: random weights can grow
        (VIT, "pixel_values", (2, 3, 24, 24)),
        (WHISPER, "input_features", (2, 80, 24)),
        (UNET, "sample", (2, 3, 24, 24)),
    ],
)
def test_config_becomes_a_model_with_inputs_that_fit(
    config: Callable[..., Path], data: dict[str, Any], name: str, shape: tuple[int, ...]
) -> None:
    target = load_target(str(config(data)), Options(seq=24, batch=2))
    assert tuple(target.kwargs[name].shape) == shape
    assert not target.model.training
    with torch.inference_mode():
        target.model(*target.args, **target.kwargs)


def test_weights_and_inputs_are_seeded(config: Callable[..., Path]) -> None:
    path = str(config(GPT2))
    first, second = (load_target(path, Options(seq=8)) for _ in range(2))
    assert torch.equal(first.kwargs["input_ids"], second.kwargs["input_ids"])
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_options_reach_the_model(config: Callable[..., Path]) -> None:
    options = Options(seq=8, attn="eager", dtype="bfloat16")
    target = load_target(str(config(GPT2)), options)
    assert target.model.config._attn_implementation == "eager"
    assert target.model.dtype is torch.bfloat16
    assert target.kwargs["input_ids"].dtype is torch.int64


def test_meta_device_allocates_no_weights(config: Callable[..., Path]) -> None:
    target = load_target(str(config(GPT2)), Options(seq=8, device="meta"))
    assert target.model.dtype is torch.float32
    assert {t.device.type for t in [*target.model.parameters(), *target.kwargs.values()]} == {
        "meta"
    }


def test_folder_with_weights_keeps_them_and_refuses_a_longer_length(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    made = load_target(str(config(GPT2)), Options())
    folder = tmp_path / "saved"
    made.model.save_pretrained(folder)
    with torch.no_grad():
        made.model.lm_head.weight.add_(1)
    made.model.save_pretrained(folder)
    loaded = load_target(str(folder), Options(seq=16))
    assert torch.equal(loaded.model.lm_head.weight, made.model.lm_head.weight)
    with pytest.raises(QuireError, match="longer than the model was trained for") as error:
        load_target(str(folder), Options(seq=17))
    assert error.value.allowed == "--seq up to 16"


def test_pt2_brings_its_own_inputs(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    x = torch.randn(3, 4)
    model = nn.Linear(4, 4)
    torch.export.save(torch.export.export(model, (x,)), path)
    target = load_target(str(path), Options())
    assert torch.equal(target.args[0], x)
    assert isinstance(target.model, torch.export.ExportedProgram)
    assert torch.equal(target.model.module()(x), model(x))
    with pytest.raises(QuireError, match="--seq does not apply"):
        load_target(str(path), Options(seq=3))


def test_a_dynamic_pt2_stays_dynamic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
    source, output = tmp_path / "model.pt2", tmp_path / "small.pt2"
    model = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4)).eval()
    length = torch.export.Dim("length", min=2, max=512)
    exported = torch.export.export(model, (torch.randn(8, 4),), dynamic_shapes=({0: length},))
    torch.export.save(exported, source)
    result = run("chunk", source, "--memory", "min", "--plan-only", "--out", output)
    assert result.exit_code == 0, result.output
    small = quire.load(output)
    assert small.plan.regions
    for tokens in (512, 7):
        x = torch.randn(tokens, 4)
        torch.testing.assert_close(small(x), model(x))
    with pytest.raises(quire.InputError, match="513"):
        small(torch.randn(513, 4))
    result = run("chunk", source, "--dynamic")
    assert result.exit_code == cli.USER_ERROR
    assert "keeps the dynamic dims" in result.stderr


def test_factory_takes_the_options_it_names(factory: str) -> None:
    assert load_target(f"{factory}:build", Options(seq=5)).args[0].shape == (5, 4)
    with pytest.raises(QuireError, match="takes no batch"):
        load_target(f"{factory}:build", Options(batch=5))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "not JSON"),
        ({"hidden_size": 4}, "no model_type"),
        ({"model_type": "gtp2"}, "knows no model_type 'gtp2'"),
        ({**GPT2, "architectures": ["GTP2"]}, "no class 'GTP2'"),
        ({"_class_name": "UNet9D"}, "no model 'UNet9D'"),
    ],
)
def test_a_bad_config_is_a_user_error_without_a_traceback(
    config: Callable[..., Path], data: Any, says: str
) -> None:
    path = config(data)
    result = run("chunk", path)
    assert result.exit_code == cli.USER_ERROR
    assert says in result.stderr
    assert str(path) in result.stderr.replace("\n", "")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere.json"], "no such file"),
        (["nowhere"], "no such target"),
        (["."], "no config.json"),
        (["no_such_module:f"], "cannot import no_such_module"),
        (["json:lods"], "no 'lods'"),
        (["model.json", "--seq", "0"], "--seq 0"),
        (["model.json", "--dtype", "int3"], "--dtype int3"),
        (["model.json", "--device", "abacus"], "--device abacus"),
        (["model.json", "--report", "no/where.html"], "no such folder"),
        (["model.json", "--out", "."], "this is a folder"),
        (["model.json", "--memory", "12XB"], "memory='12XB' is no budget"),
        (["model.json", "--memory", "1.5"], "memory=1.5 is no budget: a fraction is at most 1"),
        (["model.json", "--memory", "0"], "memory=0 is no budget: a budget is more than 0"),
        (["model.json", "--seq", "many"], "--seq"),
    ],
)
def test_a_bad_argument_is_a_user_error(
    config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if args == ["."] else tmp_path)
    config(GPT2)
    result = run("chunk", *args)
    assert result.exit_code == cli.USER_ERROR
    assert says in result.stderr
    assert any(word in result.stderr for word in ("to fix", "allowed", "Try"))


def test_a_factory_that_returns_something_else_is_told_what_to_return(factory: str) -> None:
    result = run("chunk", f"{factory}:wrong")
    assert result.exit_code == cli.USER_ERROR
    assert "returned int" in result.stderr
    assert "(model, args, kwargs)" in result.stderr


@pytest.mark.parametrize(
    ("name", "found", "where"),
    [
        ("broken", "raised OSError: no weights at hand", 'raise OSError("no weights at hand")'),
        ("branch", "could not capture Branch", "if x.sum() > 0:"),
        ("mismatch", "could not capture Mismatch", "return x @ x"),
    ],
)
def test_what_fails_in_the_users_code_is_shown_there(
    factory: str, name: str, found: str, where: str
) -> None:
    result = run("chunk", f"{factory}:{name}")
    assert result.exit_code == cli.USER_ERROR
    assert found in result.stderr
    assert where in result.stderr and f"{factory}.py:" in result.stderr
    assert "to fix" in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_budget_is_refused_before_the_model_is_loaded(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load_target", lambda *_: pytest.fail("loaded"))
    assert run("chunk", config(GPT2), "--memory", "lots").exit_code == cli.USER_ERROR


def test_an_infeasible_budget_names_the_tensors_in_the_model(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
    result = run("chunk", config(GPT2), "--seq", 64, "--memory", "1KiB", "--plan-only")
    assert result.exit_code == cli.USER_ERROR
    for text in (
        "no plan fits 1024 bytes (1 KiB)",
        "or more",
        "binds",
        "modeling_gpt2.py:",
        "best",
    ):
        assert text in result.stderr


def test_dynamic_needs_a_target_that_names_its_sequence(config: Callable[..., Path]) -> None:
    result = run("chunk", config(VIT), "--dynamic")
    assert result.exit_code == cli.USER_ERROR
    assert "--dynamic" in result.stderr


def test_a_budget_that_cannot_be_kept_shows_the_best_and_what_binds(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise BudgetError("no plan fits 1 KiB", best=plan(), binding=("logits [4, 50]",))

    monkeypatch.setattr(quire, "chunk", refuse, raising=False)
    result = run("chunk", config(GPT2), "--memory", "1KiB")
    assert result.exit_code == cli.USER_ERROR
    for text in ("no plan fits 1 KiB", "logits [4, 50]", "250 B"):
        assert text in result.stderr


# ---------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("4096", 4096),
        ("0.2", 0.2),
        (".5", 0.5),
        ("min", "min"),
        ("1.5GiB", "1.5GiB"),
    ],
)
def test_memory_is_bytes_a_fraction_or_text(text: str | None, value: Any) -> None:
    parsed = cli.parse_memory(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_chunk_passes_the_target_on_and_prints_the_plan(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def chunk(model: nn.Module, args: Any, kwargs: Any, **rest: Any) -> nn.Module:
        calls.append({"kwargs": kwargs, **rest})
        rest["progress"]("planning", 1, 2)
        return Small(plan())

    monkeypatch.setattr(quire, "chunk", chunk, raising=False)
    report, output = tmp_path / "plan.html", tmp_path / "small.pt2"
    result = run(
        *("chunk", config(GPT2), "--seq", 8, "--memory", 300, "--plan-only", "--dynamic"),
        *("--report", report, "--out", output),
    )
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert call["memory"] == 300
    assert call["dynamic_shapes"]["input_ids"].keys() == {1}
    assert call["kwargs"]["input_ids"].shape == (1, 8)
    for text in ("0.98 KiB", "250 B", "−75 %", "0.5 ×", "kept", "softmax over rows", "h × 2"):
        assert text in result.stdout
    assert report.exists()
    assert output.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"regions": (), "peak_bytes": 1000, "budget": 2000}, "nothing to do"),
        ({"budget": None}, "the fastest plan"),
        ({"budget": 200}, "not kept"),
    ],
)
def test_the_verdict_on_the_budget(
    config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr(quire, "chunk", lambda *_, **__: Small(plan(**changes)), raising=False)
    result = run("chunk", config(GPT2), "--plan-only")
    assert result.exit_code == 0, result.output
    assert says in result.stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("quire ")


def test_what_is_measured_is_held_against_the_budget(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quire, "chunk", lambda *_, **__: Small(plan()), raising=False)
    for peak, says in ((300, "budget kept"), (301, "budget not kept")):
        monkeypatch.setattr(cli, "_measure", lambda *_, peak=peak: cli.Measured(peak, 0.5))
        assert says in run("chunk", config(GPT2)).stdout
