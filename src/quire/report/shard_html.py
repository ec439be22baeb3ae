"""The HTML page of a shard plan: self-contained, all its figures predicted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from quire.plan.shard.plan import ShardPlan, describe, why
from quire.report.html import environment, raw


def write_shard_html(plan: ShardPlan, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Write the page to `path` and return it. The plan must have its memory and time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_shard(plan, title=title), encoding="utf-8")
    return path


def render_shard(plan: ShardPlan, *, title: str = "") -> str:
    memory, time = plan.memory, plan.time
    tokens = max(site.q_size for site in plan.sites)
    counts: dict[str, int] = {}
    for _, how in memory.regions:
        counts[how] = counts.get(how, 0) + 1
    return (
        environment()
        .get_template("shard.html")
        .render(
            plan=plan,
            title=title or "model",
            tokens=tokens,
            rows=plan.layout(tokens).local,
            order=f"zigzag over {plan.order}" if plan.order > 1 else "in plain order",
            memory=memory,
            peak=memory.peak,
            time=time,
            overhead=f"{100 * time.overhead:.1f}\u00a0%",
            efficiency=f"{100 * time.efficiency:.1f}\u00a0%",
            parts=_parts(memory),
            kept=", ".join(f"{n} {how}" for how, n in sorted(counts.items())) or "none",
            groups=_groups(plan),
            include_raw=raw,
        )
    )


def _parts(memory: Any) -> list[dict[str, Any]]:
    """What the peak is made of."""
    found = [
        (
            "weights and gradients in use"
            if memory.on_host
            else "parameters, gradients, optimiser",
            memory.states,
        ),
        ("kept outside layers", memory.outside),
        ("kept of layers", memory.kept),
        ("worked with", memory.working),
    ]
    whole = max(sum(n for _, n in found), memory.budget or 0, 1)
    return [{"name": k, "nbytes": n, "share": round(100 * n / whole, 2)} for k, n in found]


def _groups(plan: ShardPlan) -> list[dict[str, Any]]:
    """Attentions with the same candidates and choice as one."""
    seen: dict[Any, list[str]] = {}
    for site, best, tried in zip(plan.sites, plan.chosen, plan.candidates, strict=True):
        seen.setdefault((best, tried), []).append(site.module or site.node)
    return [
        {
            "where": modules[0],
            "more": len(modules) - 1,
            "why": why(best, tried, plan.ranks),
            "tried": [
                {**attrs.asdict(c), "name": describe(c, plan.ranks), "won": c == best}
                for c in sorted(tried, key=lambda c: (bool(c.refused), c.seconds))
            ],
        }
        for (best, tried), modules in seen.items()
    ]
