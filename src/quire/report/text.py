"""A plan on the terminal: its key figures, then one row for each kind of region."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from quire.plan.plan import Plan, Region
from quire.report.timeline import unchanged, walk
from quire.report.units import bytes_text, change_text, ratio_text, seconds_text

# Below these widths of the terminal, columns that say less give way.
FULL, SHORT = 116, 70


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the summary of `plan`, to standard output if no console is given."""
    console = console or Console()
    console.print(summary(plan, console.width))


def summary(plan: Plan, width: int = FULL) -> RenderableType:
    """Key figures and regions, for rich to lay out in `width` columns.

    Names from the model are `Text`, so that brackets in them are no markup.
    """
    parts: list[RenderableType] = [_figures(plan)]
    if plan.regions:
        parts += [Text(), _regions(plan, width)]
    parts += [Text(f"rewritten: {text}", style="dim") for text in plan.rewrites]
    return Group(*parts)


def _figures(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("peak, model as it is", bytes_text(plan.baseline_bytes), Text(_at_peak(plan)))
    change = change_text(plan.baseline_bytes, plan.peak_bytes)
    note = "nothing to do" if unchanged(plan) else change
    table.add_row("peak, plan", Text(bytes_text(plan.peak_bytes), style="bold"), note)
    table.add_row("budget", *_budget(plan))
    times = f"{seconds_text(plan.baseline_seconds)} → {seconds_text(plan.seconds)}"
    table.add_row("predicted time", ratio_text(plan.predicted_slowdown), times)
    if plan.lengths:
        lengths = ", ".join(f"{name} {length:,}" for name, length in plan.lengths)
        table.add_row("planned for", "", Text(lengths))
    return table


def _at_peak(plan: Plan) -> str:
    worst = max(plan.before, key=lambda m: m.nbytes, default=None)
    return f"at {worst.step} {worst.module}".rstrip() if worst else ""


def _budget(plan: Plan) -> tuple[str, RenderableType]:
    if plan.budget is None:
        return "none", "the fastest plan was asked for"
    spare = plan.budget - plan.peak_bytes
    if spare < 0:
        return bytes_text(plan.budget), Text(f"not kept, {bytes_text(-spare)} over", "bold red")
    return bytes_text(plan.budget), Text(f"kept, {bytes_text(spare)} to spare", "green")


def _regions(plan: Plan, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("region", no_wrap=True)
    columns = {"axis": width >= SHORT, "parts": True, "join": width >= FULL}
    columns |= {"peak": True, "time": True}
    right = {"parts", "peak", "time"}
    for name, shown in columns.items():
        if shown:
            table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    alike: dict[str, list[tuple[Region, int]]] = {}
    for region, depth in walk(plan.regions):
        alike.setdefault(region.like or region.name, []).append((region, depth))
    for kind in alike.values():
        (region, depth), count = kind[0], len(kind)
        module = "  " * depth + _tail(region.module or "(root)", 26 if width >= FULL else 18)
        cells: dict[str, Text | str] = {
            "axis": Text(region.label),
            "parts": f"{region.parts:,} × {region.part:,}",
            "join": Text(region.join),
            "peak": _change(region.unsplit_bytes, region.peak_bytes, bytes_text, width),
            "time": _change(region.unsplit_seconds, region.seconds, seconds_text, width),
        }
        table.add_row(
            Text.assemble(module, (f" × {count}" if count > 1 else "", "dim")),
            *(cells[name] for name, shown in columns.items() if shown),
        )
    return table


def _tail(module: str, room: int) -> str:
    """The end of a module's path, which tells more than its start."""
    return module if len(module) <= room else "…" + module[1 - room :]


def _change(before: float, after: float, text: Callable[[float], str], width: int) -> Text:
    start = f"{text(before)} → " if width >= FULL else ""
    return Text.assemble((start, "dim"), text(after))
