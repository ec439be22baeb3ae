"""Run ESMFold's trunk on a long protein within a byte budget.

    python examples/fold_long_protein.py                               512 residues in 1 GiB
    python examples/fold_long_protein.py --residues 1024 --memory 4GiB
    python examples/fold_long_protein.py --blocks 48                   the trunk's full depth

The blocks are those of transformers' ESMFold at their released widths, with random weights. For
the trained ones, load `EsmForProteinFolding` from a local folder and pass its `trunk.blocks`.
The pair states are residues × residues × 128: what is computed from them, above all the scores
of triangle attention, is what runs out of memory first.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

import quire

MIB = 1 << 20


class Trunk(torch.nn.Module):
    """The blocks one after the other, as ESMFold runs them in each recycle."""

    def __init__(self, blocks: int, config: TrunkConfig) -> None:
        super().__init__()
        made = [EsmFoldTriangularSelfAttentionBlock(config) for _ in range(blocks)]
        self.blocks = torch.nn.ModuleList(made)

    def forward(
        self, sequence: torch.Tensor, pair: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            sequence, pair = block(sequence, pair)
        return sequence, pair


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--residues", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--memory", default="1GiB", help="bytes above weights and inputs")
    parser.add_argument("--report", default="", help="write an HTML report here")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = TrunkConfig()
    trunk = Trunk(options.blocks, config).eval()
    length = options.residues
    sequence = torch.randn(1, length, config.sequence_state_dim)
    pair = torch.randn(1, length, length, config.pairwise_state_dim)

    try:
        small = quire.chunk(trunk, (sequence, pair), memory=options.memory)
    except quire.BudgetError as error:
        print(error, file=sys.stderr)
        return 1
    print(small.plan.explain())

    started = time.perf_counter()
    with torch.inference_mode():
        _, folded = small(sequence, pair)
    print(f"{length} residues, {options.blocks} blocks: {time.perf_counter() - started:.1f} s")
    print(f"pair states {tuple(folded.shape)}, {folded.numel() * folded.itemsize / MIB:.0f} MiB")
    if options.report:
        small.report(options.report)
        print(f"report {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
