"""The timeline as a picture."""

import sys
from itertools import combinations

import attrs
import pytest

from quire.errors import QuireError
from quire.report.png import timeline_figure, write_timeline_png

pytest.importorskip("matplotlib")


def size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_the_picture_is_written(plan, tmp_path):
    path = write_timeline_png(plan, tmp_path / "new" / "a.png", title="GPT-2", dpi=50)
    assert size(path) == (500, 250)


@pytest.mark.parametrize(
    "change",
    [
        {"before": ()},
        {"after": ()},
        {"regions": ()},
        {"budget": None},
        {"budget": 1 << 50},
        {"order": ()},
    ],
)
def test_whatever_is_missing(plan, tmp_path, change):
    assert size(write_timeline_png(attrs.evolve(plan, **change), tmp_path / "a.png", dpi=40))


def test_without_the_magnified_panel(plan, tmp_path):
    same = attrs.evolve(plan, after=plan.before)
    assert size(write_timeline_png(same, tmp_path / "a.png", dpi=50)) == (500, 175)


@pytest.mark.parametrize("title", ["GPT-2", "ESMFold, 48 blocks, " * 8])
@pytest.mark.parametrize("magnified", [True, False])
def test_no_text_lies_over_another_or_outside(plan, title, magnified):
    shown = plan if magnified else attrs.evolve(plan, after=plan.before)
    drawn = timeline_figure(shown, title=title)
    drawn.canvas.draw()
    texts = [*drawn.texts, *(t for a in drawn.axes for t in (*a.texts, a._left_title))]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
    assert len(boxes) >= 4
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= drawn.bbox.width and box.y1 <= drawn.bbox.height, text
    assert [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if p.overlaps(q)] == []


def test_no_timeline_is_an_error(plan, tmp_path):
    with pytest.raises(QuireError, match="holds no timeline"):
        write_timeline_png(attrs.evolve(plan, before=(), after=()), tmp_path / "a.png")


def test_matplotlib_missing_is_an_error_that_says_what_to_do(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(QuireError, match="pip install matplotlib"):
        write_timeline_png(plan, tmp_path / "a.png")
