"""Every family: exported, chunked, equal, reduction reached.

    python -m benchmarks.coverage                    writes docs/coverage.md

Each case is small in width and depth and as long as the small size is tried, so that activations
weigh something. It is exported, planned for the lowest peak there is and for 0.3 of the baseline,
run, compared and measured, in worker processes of a few cases each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

import quire
from benchmarks import host, workers
from benchmarks.measure import ROOT, difference
from benchmarks.record import mib, save, table
from benchmarks.tolerance import tolerance
from benchmarks.zoo import CASES, build
from quire.measure import allocated, environment, rise

BUDGETS: dict[str, float | str] = {"min": "min", "0.3": 0.3}


def attempt(item: dict[str, Any]) -> dict[str, Any]:
    """Export, chunk, compare and measure one case. Later stages are missing where one failed."""
    built = build(item["case"], "small", item["attn"], length=item["length"])
    model, args, kwargs = built
    facts: dict[str, Any] = {"outcome": "error", "exported": False}
    try:
        with torch.no_grad():
            exported = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        return facts | {"error": _reason(error)}
    facts |= {"outcome": "exported", "exported": True}
    graph, allowed = exported.module(), tolerance(exported.graph)
    with torch.inference_mode():
        want = graph(*args, **kwargs)
        facts["baseline"] = _peaks(lambda: graph(*args, **kwargs))
        for name, memory in BUDGETS.items():
            facts[name] = _chunk(built, memory, want, allowed)
    return facts | {"outcome": "ran"}


def _chunk(built: Any, memory: Any, want: Any, allowed: float) -> dict[str, Any]:
    model, args, kwargs = built
    try:
        small = quire.chunk(model, args, kwargs, memory=memory, allow_unknown=True)
        gap = difference(small(*args, **kwargs), want)
    except Exception as error:
        return {"error": _reason(error)}
    plan, proof = small.plan, small.certificate
    assert proof is not None
    return {
        "verdict": proof.verdict,
        "reason": proof.reason[:200],
        "planned_bytes": plan.peak_bytes,
        "planned_baseline": plan.baseline_bytes,
        "regions": len(plan.regions),
        "difference": gap,
        "equal": gap <= allowed,
        **_peaks(lambda: small(*args, **kwargs)),
    }


def _peaks(call: Any) -> dict[str, Any]:
    call()
    return {
        "rise": min(rise(call)[0] for _ in range(2)),
        "allocated": allocated(call)[0],
    }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


HEAD = (
    "family", "case", "attention", "length", "exported", "chunked", "equal", "proof",
    "baseline MiB", "lowest MiB", "planned", "measured", "at 0.3", "note",
)  # fmt: skip


def summary(row: dict[str, Any]) -> list[object]:
    """One line of the table. `measured` counts what torch's allocator hands out."""
    case, least, third = CASES[row["case"]], row.get("min", {}), row.get("0.3", {})
    base = row.get("baseline", {}).get("allocated")
    unproved = least.get("reason") or third.get("reason")
    error = row.get("error") or least.get("error") or third.get("error")
    chunked = bool(least.get("regions"))
    return [
        case.family, row["case"], row["attn"], f"{row['length']} {case.unit}",
        _yes(row.get("exported")), _yes(chunked),
        _yes(least.get("equal") and third.get("equal", True)) if "equal" in least else None,
        least.get("verdict"), mib(base), mib(least.get("allocated")),
        _change(least.get("planned_bytes"), least.get("planned_baseline")),
        _change(least.get("allocated"), base), _change(third.get("allocated"), base),
        error or unproved or case.note,
    ]  # fmt: skip


def _yes(value: object) -> str:
    return "yes" if value else "**no**"


def _change(new: int | None, old: int | None) -> str | None:
    return f"{new / old - 1:+.0%}" if new is not None and old else None


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole of `docs/coverage.md`."""
    facts = host.describe()
    good = [row for row in rows if row.get("min", {}).get("equal")]
    families = {CASES[row["case"]].family for row in rows}
    covered = {CASES[row["case"]].family for row in good}
    missing = ", ".join(sorted(families - covered)) or "none"
    left = ", ".join(sorted({c.family for c in CASES.values()} - families)) or "none"
    text = f"""# Coverage

Made by `make coverage`: do not edit. torch {facts["torch"]}, transformers
{facts["transformers"]}, diffusers {facts["diffusers"]}, fp32 on the CPU.

{len(covered)} of {len(families)} families are exported, chunked to their lowest peak and equal to
the exported graph; missing: {missing}. Not part of this run: {left}.

Models are small in width and depth and have seeded random weights (`benchmarks/zoo.py`). *Lowest*
is `memory="min"`, *at 0.3* is a budget of 0.3 of the baseline; *planned* and *measured* are changes
of peak against the exported graph, outputs included, weights and inputs excluded. Measured is what
torch's allocator handed out at the highest moment. *Equal* means within the tolerance of
`benchmarks/tolerance.py`.

"""
    return text + table(HEAD, [summary(row) for row in rows]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--only", nargs="+", choices=list(CASES), metavar="case")
    options.add_argument("--each", type=int, default=4, help="cases per worker process")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    if given.worker:
        workers.serve(given.worker, attempt)
        return
    items = [
        {"case": name, "attn": attn, "length": CASES[name].small * CASES[name].grows}
        for name in given.only or CASES
        for attn in CASES[name].attention
    ]
    rows = []
    for row in workers.answers("benchmarks.coverage", items, given.each, environment()):
        rows.append(row | {"key": f"{row['case']} {row['attn']}"})
        print(*summary(row), sep="  ", flush=True)
    save("coverage", rows, {"threads": 2})
    (ROOT / "docs" / "coverage.md").write_text(page(rows))
    print("wrote docs/coverage.md")


if __name__ == "__main__":
    main()
