"""Laws. (filled in below)"""

from __future__ import annotations

CLAIMS: list[dict[str, str]] = []
