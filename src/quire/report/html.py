"""One self-contained HTML page about a plan: opens offline, in light or dark, on any screen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import jinja2
from markupsafe import Markup

from quire.plan.plan import Plan, Region
from quire.report.highlight import highlight
from quire.report.payload import Outcome, payload, region_shapes
from quire.report.timeline import unchanged, walk
from quire.report.units import bytes_text, change_text, ratio_text, seconds_text

TEMPLATES = Path(__file__).parent / "templates"


@attrs.frozen
class Row:
    """A row of the table of splits. `count` regions are alike; only the first shows at once."""

    region: Region
    shape: int
    depth: int
    first: bool
    count: int


def write_html(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    tradeoff: Iterable[Outcome | tuple[int, float]] = (),
    edges: Iterable[tuple[str, str]] = (),
    source: str = "",
    title: str = "",
) -> Path:
    """Write the page to `path` and return it.

    `tradeoff` holds plans, or pairs of peak bytes and predicted seconds; `edges` pairs of step
    names, producer first; `source` is the emitted Python. Folders on the way are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(plan, tradeoff=tradeoff, edges=edges, source=source, title=title)
    path.write_text(page, encoding="utf-8")
    return path


def render(
    plan: Plan,
    *,
    tradeoff: Iterable[Outcome | tuple[int, float]] = (),
    edges: Iterable[tuple[str, str]] = (),
    source: str = "",
    title: str = "",
) -> str:
    """The page as a string; see `write_html`."""
    data = payload(plan, tradeoff, edges)
    return (
        environment()
        .get_template("page.html")
        .render(
            plan=plan,
            title=title or plan.program or "model",
            figures=figures(plan),
            data=_json(data),
            has_timeline=bool(plan.before or plan.after),
            alike=any(group["like"] != i for i, group in enumerate(data["groups"])),
            has_graph=bool(data["groups"]),
            points=len(data["tradeoff"]),
            rows=rows(plan),
            source=highlight(source),
            include_raw=raw,
        )
    )


def environment() -> jinja2.Environment:
    """Where the pages' templates are found, with the filters they use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        bytes=lambda n: _whole(bytes_text(n)),
        seconds=lambda n: _whole(seconds_text(n)),
        count=lambda n: f"{n:,}",
    )
    return made


def raw(name: str) -> Markup:
    """A file beside the templates, as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _whole(text: str) -> str:
    """A number and its unit stay on one line."""
    return text.replace(" ", "\u00a0")


def figures(plan: Plan) -> dict[str, Any]:
    """The key figures as text, and whether the budget is kept."""
    less = plan.baseline_bytes / plan.peak_bytes if plan.peak_bytes else 1.0
    at_peak = max(plan.before, key=lambda m: m.nbytes, default=None)
    spare = None if plan.budget is None else plan.budget - plan.peak_bytes
    return {
        "change": _whole(change_text(plan.baseline_bytes, plan.peak_bytes)),
        "less": _whole(ratio_text(less)),
        "peak_step": at_peak.step if at_peak else "",
        "kept": spare is None or spare >= 0,
        "spare": "" if spare is None else _whole(bytes_text(abs(spare))),
        "ratio": _whole(ratio_text(plan.predicted_slowdown)),
        "idle": unchanged(plan),
    }


def rows(plan: Plan) -> list[Row]:
    """Table rows in plan order, nested regions after the one they are in."""
    shapes = region_shapes(plan)
    alike: dict[int, int] = {}
    for shape in shapes.values():
        alike[shape] = alike.get(shape, 0) + 1
    seen: set[int] = set()
    out = []
    for region, depth in walk(plan.regions):
        shape = shapes[region.name]
        out.append(Row(region, shape, depth, shape not in seen, alike[shape]))
        seen.add(shape)
    return out


def _json(data: dict[str, Any]) -> Markup:
    """JSON that is safe inside a script element: names come from the user's model."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
