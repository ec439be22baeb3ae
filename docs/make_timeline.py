"""`make picture`: docs/timeline.png, the plan of the demo's GPT-2 before and after."""

from __future__ import annotations

from pathlib import Path

import quire
from quire.demo import CASES, build
from quire.report.png import write_timeline_png

if __name__ == "__main__":
    model, args, kwargs = build("gpt2")
    plan = quire.chunk(model, args, kwargs, memory=CASES["gpt2"].memory).plan
    write_timeline_png(plan, Path(__file__).parent / "timeline.png", title=CASES["gpt2"].title)
