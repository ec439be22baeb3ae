"""What the documents say is true: their Python runs, their links lead somewhere, and the command
line they show is the one there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from quire import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks in `language`, with the line each starts at."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n"), found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_python_blocks_run_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / name, "python")
    assert found
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in found:
        # Blank lines in front: a failure then names the line of the page.
        exec(compile("\n" * line + code, str(ROOT / name), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_the_commands_shown_exist(name: str) -> None:
    group = typer.main.get_command(cli.app)
    commands = group.commands  # type: ignore[attr-defined]
    shown = [code for _, code in blocks(ROOT / name, "") if "quire " in code]
    assert shown
    for line in "".join(shown).replace("\n                   ", " ").splitlines():
        words = line.split("#")[0].replace("[", " ").replace("]", " ").split()
        if not words or words[0] != "quire":
            continue
        known = {o for p in commands[words[1]].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= known


def test_make_targets_shown_exist() -> None:
    targets = re.findall(r"^([\w.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = [t for p in PAGES for t in re.findall(r"(?:^|`)make (\w+)", p.read_text(), re.M)]
    assert shown
    assert {*shown} <= {*targets}
