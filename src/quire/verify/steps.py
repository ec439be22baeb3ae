"""What was shown, step by step."""

from __future__ import annotations

import attrs


@attrs.frozen
class Step:
    """One statement of the applied program, and what was shown of it. `line` is 0 for an output,
    negative for a node of the planned program."""

    line: int
    text: str
    verdict: str
    reason: str = ""
