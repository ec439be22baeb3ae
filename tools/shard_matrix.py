"""Every model, way, dtype and number of ranks of `quire.shard` against one process.

    python tools/shard_matrix.py [--steps]

Loss and every parameter's gradient, on 2 and 4 Gloo ranks, at lengths that are prime, with and
without packed documents, in fp32 and bf16; with --steps also twenty optimiser steps of each way.
Writes the largest errors to benchmarks/results. Ends with 1 if one is above its bound: 1e-5 of a
gradient's norm in fp32, the rounding of bf16 at the model's depth in bf16.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.record import save
from tests import test_sharding as case
from tests.ranks import Ranks
from tests.shard_models import FAMILIES, MORE

SIZE = 37
EPS = torch.finfo(torch.bfloat16).eps
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2 * 40**0.5 * EPS}
"""Two layers of some ten rounded ops each, forward and back: errors add as their root."""


def errors(answers: list[dict[str, Any]], loss: torch.Tensor, grads: dict[str, Any]) -> list[float]:
    """Largest relative error of the loss, of a gradient, and of all gradients together."""
    of_loss = of_one = of_all = 0.0
    largest = max(float(g.norm()) for g in grads.values())
    whole = torch.stack([g.norm() for g in grads.values()]).norm()
    for answer in answers:
        assert answer["grads"].keys() == grads.keys()
        of_loss = max(of_loss, float(abs(answer["loss"].float() - loss) / abs(loss)))
        off = {n: (answer["grads"][n].float() - g).norm() for n, g in grads.items()}
        of_all = max(of_all, float(torch.stack(list(off.values())).norm() / whole))
        # A gradient that is zero but for rounding (a key's bias) says nothing of itself.
        told = [n for n, g in grads.items() if g.norm() > 1e-4 * largest]
        of_one = max(of_one, *(float(off[n] / grads[n].norm()) for n in told))
    return [of_loss, of_one, of_all]


def main() -> int:
    ranks, rows, bad = Ranks(), [], 0
    for family in (*FAMILIES, *MORE):
        for packed in (False, True) if family == "llama" else (False,):
            size = SIZE if family in FAMILIES else 13
            alone = case._alone(family, size, packed)
            for dtype in (torch.float32, torch.bfloat16):
                for count in (2, 4):
                    for way in case.WAYS if count == 4 else case.WAYS[:3]:
                        given = {"family": family, "size": size, "packed": packed, "dtype": dtype}
                        try:
                            found = ranks.run(case._sharded, ranks=count, way=way, **given)
                            off = errors(found, *alone)
                        except AssertionError as error:
                            off, failed = [float("inf")] * 3, str(error).strip().splitlines()[-1]
                            print(failed, flush=True)
                        name = f"{family}{', packed' if packed else ''}, {count} ranks, {way}"
                        # In half precision single small gradients are noise: all together count.
                        measure = off[1] if dtype is torch.float32 else off[2]
                        ok = measure <= BOUND[dtype] and off[0] <= BOUND[dtype]
                        bad += not ok
                        kind = str(dtype).removeprefix("torch.")
                        rows.append(
                            {"key": f"{name}, {kind}", "loss": off[0], "gradient": off[1],
                             "gradients": off[2], "bound": BOUND[dtype], "within": ok}
                        )  # fmt: skip
                        print(
                            name,
                            kind,
                            *(f"{x:.2e}" for x in off),
                            "" if ok else "ABOVE",
                            flush=True,
                        )
    if "--steps" in sys.argv:
        alone_losses = case._steps(1)
        for way in case.WAYS:
            for losses in ranks.run(case._steps, ranks=4, ways=[way])[:1]:
                off_by = max(abs(a - b) / b for a, b in zip(losses, alone_losses, strict=True))
                rows.append({"key": f"20 steps, llama, 4 ranks, {way}", "loss": off_by,
                             "bound": 1e-4, "within": off_by <= 1e-4})  # fmt: skip
                bad += off_by > 1e-4
                print(rows[-1], flush=True)
    ranks.close()
    save("shard-matrix", rows, {"device": "cpu", "ranks": "Gloo", "threads": 1})
    print(f"{len(rows)} cases, {bad} above their bound")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
