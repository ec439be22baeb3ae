"""The page's text and data; test_browser.py opens it."""

import json
import re
from html import unescape

import attrs
import pytest

from quire.plan.plan import Plan, Region
from quire.report.highlight import highlight
from quire.report.html import render, rows, write_html
from quire.report.payload import payload

from .plans import SOURCE, edges, tradeoff


def embedded(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def plain(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page)).replace("\xa0", " ")


def test_the_page_is_one_file_without_links(plan, tmp_path):
    path = write_html(
        plan, tmp_path / "new" / "plan.html", edges=edges(), source=SOURCE, title="GPT-2"
    )
    page = path.read_text()
    assert "<title>GPT-2 · Quire plan</title>" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    # The one address is the name of SVG, which no browser fetches.
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert len(page) < 300_000


def test_the_key_figures(plan):
    text = plain(render(plan))
    assert "goes from 1.55 GiB to 66 MiB (−96 %), within the budget of 80 MiB" in text
    assert "Budget, kept 80 MiB 14 MiB to spare" in text


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (None, "the fastest plan was asked for"),
        (66 << 20, "Budget, kept 66 MiB 0 B to spare"),
        ((66 << 20) - (1 << 20), "Budget, not kept 65 MiB 1 MiB too much"),
    ],
)
def test_the_budget(plan, budget, said):
    plan = attrs.evolve(plan, budget=budget, peak_bytes=66 << 20)
    assert said in plain(render(plan))


def test_nothing_to_do(plan):
    idle = attrs.evolve(
        plan, regions=(), rewrites=(), peak_bytes=plan.baseline_bytes, budget=4 << 30
    )
    text = plain(render(idle))
    assert "There was nothing to do" in text
    assert "Splits" not in text


def test_a_plan_without_moments_still_has_its_table(plan):
    page = render(attrs.evolve(plan, before=(), after=(), order=()))
    assert 'id="timeline"' not in page
    assert 'id="graph"' not in page
    assert page.count("<tr data-region=") == 36


def test_empty_plan():
    page = render(Plan("", None, 0, 0, 0.0, 0.0, (), ()))
    assert "<h1>model</h1>" in page


def test_names_cannot_break_out_of_the_page(plan):
    evil = "</script><script>alert(1)</script>"
    moment = attrs.evolve(plan.before[0], step=evil, module=evil)
    region = attrs.evolve(plan.regions[0], label=evil, module=evil)
    spoiled = attrs.evolve(
        plan, program=evil, before=(moment,), order=(evil,), regions=(region,), rewrites=(evil,)
    )
    page = render(spoiled, source=f"x = '{evil}'", title=evil)
    assert "<script>alert" not in page
    assert evil in embedded(page)["names"]


def test_payload_holds_each_moment_and_region(plan):
    data = payload(plan, tradeoff(plan), [*edges(), ("gone", "add_0")])
    assert data["before"]["bytes"] == [m.nbytes for m in plan.before]
    assert data["after"]["bytes"] == [m.nbytes for m in plan.after]
    assert len(data["regions"]) == 36
    assert len(data["edges"]) == len(edges())  # the edge from a step unknown is dropped
    assert data["names"][data["after"]["region"][10]] == "h0_rows"
    # Layers 1 to 11 are drawn like layer 0.
    assert [g["like"] for g in data["groups"]] == [0, *[1] * 12, 13]


def test_a_layer_with_another_region_is_not_alike(plan):
    other = tuple(r for r in plan.regions if r.name != "h3_mlp")
    data = payload(attrs.evolve(plan, regions=other))
    assert [g["like"] for g in data["groups"]] == [0, 1, 1, 1, 4, *[1] * 8, 13]


def test_tradeoff_takes_plans_and_pairs(plan):
    data = payload(plan, [plan, (100, 2.0)])
    assert data["tradeoff"] == [(100, 2.0), (plan.peak_bytes, plan.seconds)]


def test_rows_count_the_regions_alike(plan):
    table = rows(plan)
    assert [(r.region.name, r.depth, r.count) for r in table if r.first] == [
        ("h0_rows", 0, 12),
        ("h0_keys", 1, 12),
        ("h0_mlp", 0, 12),
    ]
    alone = Region("a", "s", 0, ("s",), 8, 3)
    assert rows(attrs.evolve(plan, regions=(alone,)))[0].count == 1


def test_highlight_marks_python_and_keeps_the_text():
    lines = highlight(SOURCE)
    assert lines[0].startswith('<i class="k">def</i> forward')
    assert '<i class="c"># transformer.h.0.attn' in lines[1]
    text = [unescape(re.sub(r"</?i[^>]*>", "", line)) for line in lines]
    assert text == SOURCE.splitlines()


def test_highlight_over_several_lines_and_of_what_is_no_python():
    quotes = "&#34;" * 3
    marked = [f'x = <i class="s">{quotes}a</i>', f'<i class="s">&lt;b&gt;{quotes}</i>']
    assert highlight('x = """a\n<b>"""') == marked
    assert highlight("def (:\n  '''<b>") == ["def (:", "  &#39;&#39;&#39;&lt;b&gt;"]
