"""Results on disk, and how they are summed up: medians, with the raw samples kept."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import host
from benchmarks.measure import Job, run

FOLDER = Path(__file__).parent / "results"
MIB = 1 << 20


def save(what: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Write `results/<what>-<hardware>.json`; of the rows there those of the same key are replaced.

    The key of a row is its `key` field: a run of one model does not lose another's. Each row keeps
    the command that made it and its day. Rows of another version of torch, or of anything else that
    the file says of the machine, go: the file says it of all its rows.
    """
    path = FOLDER / f"{what}-{host.slug(settings.get('device', 'cpu'))}.json"
    hardware = host.describe()
    kept = json.loads(path.read_text()) if path.exists() else {"hardware": hardware, "rows": []}
    old = kept["rows"] if kept["hardware"] == hardware else []
    command = " ".join(["python", _script(), *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    new = {row["key"] for row in rows}
    record = {
        "what": what,
        "date": date,
        "hardware": hardware,
        "settings": settings,
        "rows": [row for row in old if row["key"] not in new]
        + [row | {"command": command, "date": date} for row in rows],
    }
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def _script() -> str:
    """What runs, as it is called in the repository: a benchmark is a module, a tool a file."""
    path = Path(sys.argv[0]).resolve()
    if path.parent == Path(__file__).parent:
        return f"-m benchmarks.{path.stem}"
    root = Path(__file__).parents[1]
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def records(what: str) -> list[dict[str, Any]]:
    """The result files of `what`, one for each machine, the newest first."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"{what}-*.json"))]
    found = [record for record in found if record["what"] == what]
    return sorted(found, key=lambda record: record["date"], reverse=True)


def interleave(jobs: dict[str, Job], rounds: int) -> dict[str, dict[str, Any]]:
    """Run the jobs in turn, A B A B, each in a fresh process, and pool their samples.

    A job that fails is not tried again; its `error` stands in its result.
    """
    pooled: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for name, job in jobs.items():
            seen = pooled.get(name)
            if seen and "error" in seen:
                continue
            answer = run(job)
            print(f"  {job.title()} [{turn + 1}/{rounds}] {_short(answer)}", flush=True)
            if seen and "samples" in answer:
                seen["samples"] += answer["samples"]
            else:
                pooled[name] = {**answer, "job": attrs.asdict(job)}
    return pooled


def _short(answer: dict[str, Any]) -> str:
    samples = answer.get("samples")
    return answer.get("error") or (", ".join(f"{s:.4g}" for s in samples) if samples else "done")


def middle(result: dict[str, Any]) -> float | None:
    """The median of a result's samples; None where the job failed."""
    samples = result.get("samples")
    return statistics.median(samples) if samples else None


def ratio(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """Median of `a` over median of `b`; None where either is missing."""
    top, bottom = middle(a), middle(b)
    return top / bottom if top is not None and bottom else None


def mib(count: float | None) -> str:
    return "–" if count is None else f"{count / MIB:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. None is printed as a dash."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = ("–" if cell is None else str(cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
