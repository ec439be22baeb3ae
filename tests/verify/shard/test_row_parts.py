"""Ops in parts of a rank's rows: proved, and lies about them not."""

from __future__ import annotations

from functools import cache

import attrs
import pytest

from quire.shard_proof import hooks
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Source, Task
from tests.verify.shard.cases import sharded

RUNTIME = "quire.runtime.row_parts"


@cache
def task(family: str) -> Task:
    return sharded(family, 13, 4, "ring", parts=3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_proved_and_run_exactly(family: str) -> None:
    """Four rows of a rank, two at a time."""
    assert any("ranks.in_parts(rows, 4, 2, " in s.text for s in task(family).sources)
    found = prove_task(task(family), hooks(), exact=True)
    assert found.verdict == "proved", found.reason
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    assert run.text.startswith("equal"), run.text


LIES = {
    "operands change places": ("[embedding, linear_3]", "[linear_3, linear_3]"),
    "more rows than there are": ("ranks.in_parts(rows, 4, 2, ", "ranks.in_parts(rows, 5, 2, "),
    "more rows at a time than there are": ("(rows, 4, 2, ", "(rows, 4, 5, "),
    "two blocks of rows": ("[(1, 1, 1)])", "[(1, 2, 1)])"),
    "another result": ("return add_8\n", "return add_6\n"),
    "all rows within a part": ("rows(embedding, linear_3):", "rows(_, linear_3):"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_parts(lie: str) -> None:
    old, new = LIES[lie]
    told = task("llama")
    (at,) = [k for k, s in enumerate(told.sources) if s.module == "model.layers.0"]
    source = told.sources[at]
    assert old in source.text
    text = source.text.replace("del add_6, linear_6", "del linear_6").replace(old, new)
    sources = list(told.sources)
    sources[at] = Source(source.module, source.call, text)
    found = prove_task(attrs.evolve(told, sources=tuple(sources)), hooks(), refute=False)
    assert found.verdict != "proved"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rows, start, some)", "rows, 0, some)"),
        ("first - start, new", "0, new"),
        ("torch.cat(blocks, dim + 1)", "torch.cat(blocks[::-1], dim + 1)"),
    ],
)
def test_lies_of_the_runtime_differ_when_run(old: str, new: str) -> None:
    """Three of four rows at a time, so that the last part shares rows with the one before."""
    told = sharded("gpt2", 13, 4, "ring", parts=2, rows=3)
    text = hooks().texts[RUNTIME]
    assert old in text
    lie = attrs.evolve(hooks(), texts={**hooks().texts, RUNTIME: text.replace(old, new)})
    assert prove_task(told, lie, exact=True).verdict == "refuted"
