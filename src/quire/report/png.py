"""The memory timeline of a plan as a picture, for a README. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from quire.errors import QuireError
from quire.plan.plan import Moment, Plan
from quire.report.timeline import groups, positions, walk
from quire.report.units import bytes_text, change_text, ratio_text

# The page's light colours.
INK, SOFT, RULE, GRID = "#1e1c19", "#68635a", "#c9c4b9", "#ece9e2"
BEFORE, BEFORE_FILL, PLAN, PLAN_FILL, BUDGET = "#8f877a", "#d9d4c9", "#1d5fae", "#bdd3ef", "#c2331f"
REGIONS = ("#b9770e", "#7b4fa3", "#2f8558", "#1f8a99", "#b4487c", "#6f7d1f")
# Inches across, and above the axes; the sides of the axes as shares of the width.
WIDTH, HEAD, LEFT, RIGHT = 10, 0.85, 0.085, 0.985
# The plan is drawn again on its own scale where it would be this many times lower than the rest.
MAGNIFY = 2.2


def write_timeline_png(
    plan: Plan, path: str | os.PathLike[str], *, title: str = "", dpi: int = 160
) -> Path:
    """Draw bytes live at each step, before and after, and return the path written.

    Raises QuireError if the plan holds no timeline or matplotlib is not installed.
    """
    figure = timeline_figure(plan, title=title, dpi=dpi)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def timeline_figure(plan: Plan, *, title: str = "", dpi: int = 160) -> Any:
    """The picture as a `matplotlib.figure.Figure`; see `write_timeline_png`."""
    if not plan.before and not plan.after:
        raise QuireError("the plan holds no timeline", fix="plan the model again")
    # matplotlib is optional and slow to import, so nobody pays for it who draws no picture.
    try:
        figure_module = import_module("matplotlib.figure")
    except ImportError as error:
        raise QuireError("matplotlib is not installed", fix="pip install matplotlib") from error
    top, high = _highest(plan.after), max(_highest(plan.before), _highest(plan.after))
    magnified = bool(plan.after) and top > 0 and high / top > MAGNIFY
    height = 5 if magnified else 3.5  # inches
    figure = figure_module.Figure(figsize=(WIDTH, height), dpi=dpi, facecolor="white")
    ratios = [1.7, 1] if magnified else [1]
    grid = figure.subplots(
        len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False,
        gridspec_kw={
            "left": LEFT, "right": RIGHT, "top": 1 - HEAD / height, "bottom": 0.12, "hspace": 0.3,
        },
    )  # fmt: skip
    axes = [row[0] for row in grid]
    left, right = positions(plan.before, plan.after)
    _area(axes[0], left, plan.before, BEFORE, BEFORE_FILL)
    for ax in axes:
        _area(ax, right, plan.after, PLAN, PLAN_FILL)
    limit = plan.budget if plan.budget is not None and plan.budget < high * 1.6 else 0
    _dress(axes[0], max(high, limit), plan.budget, named=not magnified)
    _label_peak(axes[0], left, plan.before, SOFT)
    if magnified:
        limit = plan.budget if plan.budget is not None and plan.budget < top * 2 else 0
        _dress(axes[1], max(top, limit) * 1.08, plan.budget, named=True)
        scales = [(a.get_ylim()[1], a.get_position().height) for a in axes]
        times = scales[0][0] / scales[1][0] * scales[1][1] / scales[0][1]
        axes[1].set_title(
            f"the plan alone, magnified {times:.0f} ×", loc="left", fontsize=9, color=SOFT
        )
    if plan.after:
        _label_peak(axes[-1], right, plan.after, PLAN, below=not magnified)
    _bands(axes[-1], plan, right)
    _blocks(axes, plan, left if plan.before else right)
    top = 1 - 0.27 / height
    head = figure.text(LEFT, top, title or plan.program, fontsize=14, color=INK, va="center")
    head.set_weight("bold")
    _fit(head, figure)
    figure.text(LEFT, 1 - 0.52 / height, _caption(plan), fontsize=10, color=SOFT, va="center")
    return figure


def _fit(text: Any, figure: Any) -> None:
    """Make `text` as small as it must be to stay within the axes."""
    room = (RIGHT - LEFT) * figure.bbox.width
    while text.get_window_extent().width > room and text.get_fontsize() > 1:
        text.set_fontsize(text.get_fontsize() * 0.95)  # hinted widths do not scale evenly


def _caption(plan: Plan) -> str:
    budget = "" if plan.budget is None else f", budget {bytes_text(plan.budget)}"
    return (
        f"peak {bytes_text(plan.baseline_bytes)} → {bytes_text(plan.peak_bytes)} "
        f"({change_text(plan.baseline_bytes, plan.peak_bytes)}){budget}, "
        f"predicted time {ratio_text(plan.predicted_slowdown)}"
    )


def _highest(moments: Sequence[Moment]) -> int:
    return max((m.nbytes for m in moments), default=0)


def _area(ax: Any, edges: list[float], moments: Sequence[Moment], line: str, fill: str) -> None:
    if moments:
        ax.stairs([m.nbytes for m in moments], edges, fill=True, color=fill, alpha=0.9)
        ax.stairs([m.nbytes for m in moments], edges, color=line, linewidth=1.1, baseline=None)


def _dress(ax: Any, high: float, budget: int | None, *, named: bool) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.set_ylim(0, high * 1.06)
    step = 1
    while high / step > 5:
        step *= 2
    ticks = list(range(0, int(high) + 1, step))
    ax.set_yticks(ticks, [bytes_text(t) if t else "0" for t in ticks])
    ax.tick_params(length=0, labelsize=9, labelcolor=SOFT)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    if budget is not None and budget <= high * 1.06:
        ax.axhline(budget, color=BUDGET, linewidth=1.3, linestyle=(0, (5, 3)))
        if named:
            ax.annotate(
                f"budget {bytes_text(budget)}", (1, budget), (0, 3), fontsize=9, color=BUDGET,
                xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            )  # fmt: skip


def _label_peak(
    ax: Any, edges: list[float], moments: Sequence[Moment], color: str, *, below: bool = False
) -> None:
    """Name the highest moment; `below` its line where the label of another may lie above."""
    if not moments:
        return
    i = max(range(len(moments)), key=lambda k: moments[k].nbytes)
    at = (edges[i] + edges[i + 1]) / 2
    late = at > edges[-1] / 2
    offset = (-7 if late else 7, -13 if below else 4)
    ax.plot([at], [moments[i].nbytes], "o", ms=5, mfc="white", mec=color, mew=1.5, clip_on=False)
    ax.annotate(
        f"peak {bytes_text(moments[i].nbytes)}", (at, moments[i].nbytes), offset,
        textcoords="offset points", fontsize=9, weight="bold", color=color,
        ha="right" if late else "left",
    )  # fmt: skip


def _bands(ax: Any, plan: Plan, edges: list[float]) -> None:
    """Regions as bars under the axis, nested ones one row lower; alike ones share a colour."""
    place = {m.step: i for i, m in reversed(list(enumerate(plan.after)))}
    shapes: dict[str, int] = {}
    for region, depth in walk(plan.regions):
        shape = shapes.setdefault(region.like or region.name, len(shapes))
        found = [place[s] for s in region.steps if s in place]
        if found:
            span = (edges[min(found)], edges[max(found) + 1])
            low = -0.06 - 0.055 * depth
            ax.fill_between(
                span, low, low + 0.04, transform=ax.get_xaxis_transform(), clip_on=False,
                color=REGIONS[shape % len(REGIONS)], linewidth=0,
            )  # fmt: skip


def _blocks(axes: list[Any], plan: Plan, edges: list[float]) -> None:
    """Name the blocks of the model along the foot, as many as there is room for."""
    moments = plan.before or plan.after
    place = {m.step: i for i, m in reversed(list(enumerate(moments)))}
    marks = []
    for group in groups(plan):
        found = [place[s] for s in group.steps if s in place]
        if found:
            marks.append((edges[min(found)], edges[max(found) + 1], group.label))
    for ax in axes:
        ax.set_xlim(edges[0], edges[-1])
        for x in chain.from_iterable(mark[:2] for mark in marks):
            ax.axvline(x, color=GRID, linewidth=0.8, zorder=0)
    # About 7 thousandths of the width a letter.
    room = [m for m in marks if (m[1] - m[0]) / (edges[-1] or 1) > 0.007 * (len(m[2]) + 1)]
    depth = max((d for _, d in walk(plan.regions)), default=-1)
    axes[-1].set_xticks([(a + b) / 2 for a, b, _ in room], [label for *_, label in room])
    axes[-1].tick_params(axis="x", pad=5 + 9 * (depth + 1))
