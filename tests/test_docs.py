"""What the documents say is true: their Python runs, their links lead somewhere, and the command
line they show is the one there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from quire import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_COMMANDS = ["README.md", "docs/guide.md", "docs/proof.md", "docs/shard.md"]
LAUNCHER = re.compile(r"^torchrun .*--no-python ")
LINK = re.compile(r"\]\(([^)#\s]+)")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks in `language`, with the line each starts at."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n"), found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {(p, kind) for p in PAGES for kind, _ in BLOCK.findall(p.read_text())}
    assert {kind for _, kind in kinds} == {"", "python"}
    assert {str(p.relative_to(ROOT)) for p, kind in kinds if not kind} == {*WITH_COMMANDS}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=named)
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page, "python")
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in found:
        # Blank lines in front: a failure then names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_shown_exist(name: str) -> None:
    group = typer.main.get_command(cli.app)
    commands = group.commands  # type: ignore[attr-defined]
    shown = [code for _, code in blocks(ROOT / name, "") if "quire " in code]
    assert shown
    for line in "".join(shown).replace("\n                   ", " ").splitlines():
        words = LAUNCHER.sub("", line).split("#")[0].replace("[", " ").replace("]", " ").split()
        if not words or words[0] != "quire":
            continue
        known = {o for p in commands[words[1]].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= known


@pytest.fixture
def shown_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that the commands of the pages name, small ones, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    gpt2 |= {"n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    Path("gpt2.json").write_text(json.dumps(gpt2))
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32}
    llama |= {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama |= {"vocab_size": 50, "max_position_embeddings": 1 << 20, "use_cache": False}
    Path("llama.json").write_text(json.dumps(llama))
    exported = torch.export.export(torch.nn.Linear(4, 4), (torch.randn(3, 4),))
    torch.export.save(exported, "model.pt2")
    Path("mypkg").mkdir()
    Path("mypkg/models.py").write_text(
        "import torch\n"
        "def build():\n"
        "    layers = torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, 4)\n"
        "    return torch.nn.Sequential(*layers), (torch.randn(1000, 4),), {}\n"
    )


@pytest.mark.usefixtures("shown_targets")
def test_the_commands_shown_run() -> None:
    shown = "".join(code for name in WITH_COMMANDS for _, code in blocks(ROOT / name, ""))
    lines = [t for t in shown.splitlines() if t.startswith("quire ") and "TARGET" not in t]
    assert len(lines) >= 4
    for line in lines:
        _, *words = line.split("#")[0].split()
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, (line, result.output)
        files = [word for word in words if word.endswith((".html", ".pt2"))]
        assert all(Path(name).stat().st_size for name in files)


def test_make_targets_shown_exist() -> None:
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = [t for p in PAGES for t in re.findall(r"(?:^|`)make ([\w-]+)", p.read_text(), re.M)]
    assert shown
    assert {*shown} <= {*targets}
