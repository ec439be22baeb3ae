"""The page in headless Chromium: what a person sees, at a desk and on a phone."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from quire.report.html import write_html
from quire.report.units import bytes_text, seconds_text

from .plans import SOURCE, edges, gpt2_plan, tradeoff

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("QUIRE_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@attrs.frozen
class Opened:
    """A page with what went wrong on it and what it asked the network for."""

    page: "sync_api.Page"
    troubles: list[str]
    requests: list[str]

    def texts(self, selector: str) -> list[str]:
        found = self.page.locator(selector).all_text_contents()
        return [text.replace("\xa0", " ") for text in found]

    def names(self, selector: str) -> list[str]:
        return self.page.eval_on_selector_all(selector, "all => all.map(e => e.dataset.region)")


def open_page(browser, path: Path, size=(1280, 900), scheme="light") -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.troubles.append(message.text))
    page.on("pageerror", lambda error: opened.troubles.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("window.quire !== undefined")
    # Figures are drawn once their width is known.
    if page.locator("#timeline").count():
        page.wait_for_selector("#timeline svg .line")
    yield opened
    page.close()
    assert opened.troubles == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    plan = gpt2_plan()
    return write_html(
        plan,
        tmp_path_factory.mktemp("report") / "plan.html",
        tradeoff=tradeoff(plan),
        edges=edges(),
        source=SOURCE,
        title="GPT-2, 12 layers, 4096 tokens",
    )


@pytest.fixture(params=SIZES)
def opened(browser, path, request):
    yield from open_page(browser, path, SIZES[request.param])


@pytest.fixture
def desk(browser, path):
    yield from open_page(browser, path)


def test_it_fits_the_width(opened):
    def overflow():
        return opened.page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert overflow() <= 0
    opened.page.click("summary")
    opened.page.click("#all")
    opened.page.click("[data-mode=time]")
    opened.page.click("button.sheet >> nth=0")
    assert overflow() <= 0


def test_the_timeline_has_every_moment_and_both_peaks(opened, plan):
    for kind, moments in (("before", plan.before), ("plan", plan.after)):
        path = opened.page.locator(f"#timeline .line.{kind}").first.get_attribute("d")
        assert path is not None
        assert path.count("H") == len(moments)
        (shown,) = opened.texts(f"#timeline text.peak.{kind}")
        assert shown == f"peak {bytes_text(max(m.nbytes for m in moments))}"
    assert f"budget {bytes_text(plan.budget)}" in opened.texts("#timeline text.limit-name")


def test_heights_are_true_to_the_bytes(desk, plan):
    # One scale holds both lines: the plan's peak stands as much lower as it has fewer bytes.
    def height(kind):
        return desk.page.evaluate(
            "kind => document.querySelector(`#timeline .area.${kind}`).getBBox().height", kind
        )

    assert height("plan") / height("before") == pytest.approx(
        plan.peak_bytes / plan.baseline_bytes, abs=0.002
    )


def move_to(opened, moments, index):
    """Put the pointer over a moment of a timeline by step."""
    box = opened.page.locator("#timeline svg").bounding_box()
    grid = opened.page.locator("#timeline svg line.axis").first
    left, right = float(grid.get_attribute("x1")), float(grid.get_attribute("x2"))
    x = box["x"] + left + (right - left) * (index + 0.5) / len(moments)
    opened.page.mouse.move(x, box["y"] + 60)


def test_hover_names_step_module_and_tensors(opened, plan):
    index = max(range(len(plan.before)), key=lambda i: plan.before[i].nbytes)
    move_to(opened, plan.before, index)
    before, after = opened.texts(".moment")
    assert plan.before[index].step in before
    assert plan.before[index].module in before
    assert bytes_text(plan.before[index].nbytes) in before
    for hold in plan.before[index].holds:
        assert hold.tensor in before
        assert bytes_text(hold.nbytes) in before
    assert "in h0_rows" in after
    # Elsewhere it says something else, and off the figure the peaks again.
    move_to(opened, plan.before, 100)
    assert plan.before[100].step in opened.texts(".moment")[0]
    opened.page.mouse.move(2, 2)
    assert all("at its peak" in text for text in opened.texts(".moment"))


def test_the_keyboard_walks_the_timeline(desk, plan):
    desk.page.focus("#timeline .chart")
    desk.page.keyboard.press("ArrowRight")
    index = max(range(len(plan.before)), key=lambda i: plan.before[i].nbytes)
    assert plan.before[index].step in desk.texts(".moment .step")[0]
    desk.page.keyboard.press("ArrowLeft")
    assert plan.before[index - 1].step in desk.texts(".moment .step")[0]


def test_by_time_the_faster_plan_ends_sooner(desk, plan):
    desk.page.click("[data-mode=time]")
    widths = desk.page.evaluate(
        """['before', 'plan'].map(
            kind => document.querySelector(`#timeline .area.${kind}`).getBBox().width)"""
    )
    assert widths[1] / widths[0] == pytest.approx(plan.predicted_slowdown, abs=0.01)


def test_regions_are_drawn_on_graph_and_timeline(opened, plan):
    names = [r.name for region in plan.regions for r in (region, *region.inner)]
    assert sorted(opened.names("#graph .bracket")) == sorted(names)
    assert sorted(opened.names("#timeline .band")) == sorted(names)
    # A nested region stands to the right of the one it is in.
    edge = "name => document.querySelector(`#graph [data-region=${name}].bracket`).getBBox().x"
    assert opened.page.evaluate(edge, "h0_keys") > opened.page.evaluate(edge, "h0_rows")


def test_a_region_under_the_pointer_stands_out_and_is_described(desk):
    desk.page.locator("#timeline .band[data-region=h2_mlp]").hover()
    assert "tokens: 4,096 in 5 parts of 1000" in desk.page.inner_text("#tip")
    assert desk.names("svg .on") == ["h2_mlp"] * 2
    desk.page.mouse.move(2, 2)
    assert desk.names("svg .on") == []
    assert not desk.page.locator("#tip").is_visible()


def test_a_small_sheet_opens_and_folds(desk):
    assert desk.page.locator("article.sheet").count() == 3
    desk.page.click("button.sheet >> nth=0")
    assert desk.page.locator("article.sheet").count() == 4
    assert "softmax_1" in desk.texts("article.sheet text")
    desk.page.click(".close")
    assert desk.page.locator("article.sheet").count() == 3


def test_edges_are_drawn_and_marked(desk):
    assert desk.page.locator(".edge").count() > 5
    row = desk.page.locator("article.sheet >> nth=1").locator(".row >> nth=2")
    row.scroll_into_view_if_needed()
    row.hover()
    assert "split_0" in desk.page.inner_text("#tip")
    assert desk.page.locator(".edge.on").count() >= 2


def test_the_table_shows_a_row_a_kind_then_all(opened):
    visible = "#rows tbody tr:visible"
    assert opened.page.locator(visible).count() == 3
    opened.page.click("#all")
    assert opened.page.locator(visible).count() == 36
    first = opened.texts(f"{visible} >> nth=0")[0]
    for text in ("h0_rows", "query rows", "32 × 128", "concat", "1.56 GiB→66 MiB", "layer_norm_0"):
        assert text in first
    opened.page.click("#all")
    assert opened.page.locator(visible).count() == 3


def test_the_tradeoff_has_its_points_and_rings_the_plan(opened, plan):
    assert opened.page.locator("#tradeoff .point").count() == 8
    assert opened.page.locator("#tradeoff .chosen").count() == 1
    (row,) = opened.texts(".points tr.on")
    assert bytes_text(plan.peak_bytes) in row
    assert seconds_text(plan.seconds) in row


def test_the_source_is_folded_numbered_and_whole(opened):
    assert not opened.page.locator("pre").is_visible()
    opened.page.click("summary")
    assert opened.page.locator("pre").text_content() == SOURCE
    assert opened.page.locator("pre .line").count() == len(SOURCE.splitlines())


def test_script_and_python_say_numbers_alike(desk):
    sizes = [0, 1, 999, 1000, 1023, 1.125 * 2**30, 12.25 * 2**20, 99.95 * 2**20, 2**62, -(2**20)]
    assert desk.page.evaluate("a => a.map(quire.bytesText)", sizes) == [
        bytes_text(n) for n in sizes
    ]
    times = [0, 1e-6, 0.00099996, 0.001, 0.0125, 0.9999, 1, 99.96, 1234.5]
    assert desk.page.evaluate("a => a.map(quire.secondsText)", times) == [
        seconds_text(s) for s in times
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(browser, path, scheme):
    for opened in open_page(browser, path, scheme=scheme):
        colours = opened.page.evaluate(
            """() => { const style = getComputedStyle(document.documentElement);
            return ['--paper', '--ink', '--soft', '--plan', '--budget']
                .map(name => style.getPropertyValue(name).trim()); }"""
        )
        paper, *inks = [luminance(colour) for colour in colours]
        for ink in inks:
            # WCAG AA for text.
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, after WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"before": ()},
        {"after": ()},
        {"before": (), "after": (), "order": ()},
        {"regions": ()},
        {"budget": None},
        {"budget": 1 << 50},
        {"baseline_bytes": 0, "peak_bytes": 0, "seconds": 0.0, "baseline_seconds": 0.0},
    ],
    ids="-".join,
)
def test_whatever_a_plan_lacks_the_page_works(browser, plan, tmp_path, change):
    path = write_html(attrs.evolve(plan, **change), tmp_path / "a.html", tradeoff=tradeoff(plan))
    for opened in open_page(browser, path, SIZES["phone"]):
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if opened.page.locator("#timeline").count():
            opened.page.click("[data-mode=time]")
            opened.page.focus("#timeline .chart")
            opened.page.keyboard.press("ArrowRight")
        assert "NaN" not in opened.page.content()
