"""The summary on the terminal."""

import io
import re

import attrs
import pytest
from rich.console import Console

from quire.report.text import print_plan


def printed(plan, width=130):
    console = Console(file=io.StringIO(), width=width)
    print_plan(plan, console)
    return console.file.getvalue()


def test_key_figures_and_one_row_a_kind(plan):
    text = printed(plan)
    assert "1.55 GiB" in text
    assert "66 MiB" in text
    assert "kept, 14 MiB to spare" in text
    assert len(re.findall(r"(?:attn|mlp) × 12 ", text)) == 3
    assert "online softmax" in text
    assert "1.56 GiB → 66 MiB" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_width_cuts_a_number(plan, width):
    text = printed(plan, width)
    rows = [line for line in text.splitlines() if " × 12 " in line]
    assert len(rows) == 3
    assert not [row for row in rows if row.rstrip().endswith("…")]
    assert all(len(line) <= width for line in text.splitlines())


def test_budget_none_and_not_kept(plan):
    assert "the fastest plan was asked for" in printed(attrs.evolve(plan, budget=None))
    assert "not kept, 2 MiB over" in printed(
        attrs.evolve(plan, budget=64 << 20, peak_bytes=66 << 20)
    )


def test_nothing_to_do(plan):
    idle = attrs.evolve(plan, regions=(), rewrites=(), peak_bytes=plan.baseline_bytes)
    assert "nothing to do" in printed(idle)


def test_markup_in_names_is_text(plan):
    region = attrs.evolve(plan.regions[0], label="[red]", module="[/bold]", join="[x]")
    text = printed(attrs.evolve(plan, regions=(region,), rewrites=("[/red]",)))
    assert "[red]" in text
    assert "[/bold]" in text
