"""`quire shard --plan-only` as a user types it: no devices, no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import quire
from quire import cli
from quire.cli_shard import parse_length, parse_mesh
from quire.errors import QuireError


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["shard", *words])


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "llama.json"
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    llama |= {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
    llama |= {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 1 << 20}
    path.write_text(json.dumps({**llama, "use_cache": False}))
    return str(path)


def test_a_plan_its_page_and_its_json(config: str, tmp_path: Path) -> None:
    page, plan = tmp_path / "plan.html", tmp_path / "plan.json"
    found = run(
        config, "--seq", "128K", "--mesh", "64xH100", "--memory", "80GiB", "--plan-only",
        "--report", str(page), "--out", str(plan),
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "64 ranks" in found.output and "predicted" in found.output
    assert "model.layers.0.self_attn and 1 like it" in found.output
    assert "peak" in found.output and "efficiency" in found.output
    assert "64 ranks" in page.read_text()
    written = json.loads(plan.read_text())
    assert written["ranks"] == 64 and len(written["chosen"]) == 2
    assert written["memory"]["outside"] > 0


def test_a_plan_is_proved_without_devices(config: str, tmp_path: Path) -> None:
    path = tmp_path / "llama.cert"
    found = run(config, "--seq", "8K", "--mesh", "8xH100", "--plan-only", "--cert", str(path))
    assert found.exit_code == 0, found.output
    assert "proved in" in found.output
    assert "outputs and gradients equal on every rank" in found.output
    assert quire.verify(path).verdict == "proved"


def test_a_budget_that_nothing_keeps(config: str) -> None:
    found = run(config, "--seq", "128K", "--mesh", "2xH100", "--memory", "1MiB", "--plan-only")
    assert found.exit_code == 2
    assert "no plan fits" in found.stderr and "binds" in found.stderr


def test_it_only_plans(config: str) -> None:
    found = run(config, "--seq", "64", "--mesh", "2xH100")
    assert found.exit_code == 2
    assert "--plan-only" in found.stderr


def test_words_for_lengths_and_meshes() -> None:
    assert [parse_length(t) for t in ("77", "128K", "1m")] == [77, 131072, 1048576]
    assert parse_mesh("8xH100") == (8, "h100")
    for wrong in ("x", "1.5K", "-3"):
        with pytest.raises(QuireError):
            parse_length(wrong)
    for wrong in ("8", "0xH100", "xH100"):
        with pytest.raises(QuireError):
            parse_mesh(wrong)
