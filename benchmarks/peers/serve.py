"""How a contender of `benchmarks.decoding` is driven: lines of JSON in, lines of JSON out.

Needs neither torch nor Quire, so that a peer can live in an environment of its own.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ANSWER = "ANSWER "

Stand = tuple[Callable[[], object], Callable[[], object]]
"""What takes back a step, and what takes one."""


class Engine(Protocol):
    """A model that decodes one token for `batch` rows.

    `stand(batch, position)` caches that many tokens in every row. It gives a function that takes
    back the last step, which is not timed, and one that decodes a token of every row. `logits(ids)`
    are those after the last of `ids`.
    """

    facts: dict[str, Any]

    def stand(self, batch: int, position: int) -> Stand: ...

    def logits(self, ids: list[int]) -> Any: ...


def serve(make: Callable[[Path, str, int, int, int], Engine]) -> None:
    """Run as `peer.py FOLDER WEIGHTS THREADS LENGTH BATCH`."""
    folder, weights, threads, length, batch = sys.argv[1:6]
    started = time.perf_counter()
    engine = make(Path(folder), weights, int(threads), int(length), int(batch))
    _say({"seconds": time.perf_counter() - started, **engine.facts})
    place: tuple[int, int] | None = None
    back: Callable[[], object] = lambda: None  # noqa: E731
    step = back
    for line in sys.stdin:
        asked = json.loads(line)
        if "ids" in asked:
            _say({"logits": np.asarray(engine.logits(asked["ids"]), np.float32).ravel().tolist()})
            place = None
            continue
        here = (asked["batch"], asked["position"])
        if here != place:
            (back, step), place = engine.stand(*here), here
            step()
        seconds = []
        for _ in range(asked["steps"]):
            back()
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        _say({"samples": seconds})


def _say(answer: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(answer), flush=True)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a safetensors folder, as float32."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            head = json.loads(file.read(size))
        data = np.memmap(path, mode="r", offset=8 + size)
        for name, item in head.items():
            if name == "__metadata__":
                continue
            raw = data[slice(*item["data_offsets"])]
            if item["dtype"] == "BF16":
                wide = raw.view(np.uint16).astype(np.uint32) << 16
                array = wide.view(np.float32)
            else:
                array = raw.view({"F32": np.float32, "F16": np.float16}[item["dtype"]])
            found[name] = array.astype(np.float32, copy=False).reshape(item["shape"])
    return found


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def theta(made: dict[str, Any]) -> float:
    """The base of the rotary embedding."""
    inner = made.get("rope_parameters") or {}
    return float(made.get("rope_theta") or inner.get("rope_theta") or 10000.0)
