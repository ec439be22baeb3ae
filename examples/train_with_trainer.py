"""Hugging Face's Trainer on a sequence spread over ranks: `torchrun --nproc-per-node 2 THIS`.

All ranks of a sequence read the same batches; DDP, which the Trainer wraps around the model, takes
the mean of the gradients, which is exact (`reduce_gradients=False`). What is saved at the end is
the model's own state dict.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import quire


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that count up from anywhere: soon learnt."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(self.size) + 7 * i) % 256
        return {"input_ids": ids, "labels": ids}


class SameBatches(Trainer):
    """Gives every rank the same batches: a sequence's ranks work on one. With data × sequence
    ranks, read the data of this rank's row of the mesh here."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        assert self.train_dataset is not None
        rows = self.args.per_device_train_batch_size
        return DataLoader(self.train_dataset, batch_size=rows, collate_fn=self.data_collator)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq", type=int, default=1024, help="tokens in a sequence")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    folder = tempfile.mkdtemp()
    arguments = TrainingArguments(  # starts the process group
        folder,
        per_device_train_batch_size=1,
        max_steps=options.steps,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = dist.init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("sp",))

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=options.seq,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(kind)
    data = Counting(options.seq)
    example = {k: v[None].to(kind) for k, v in data[0].items()}
    small = quire.shard(model, example, mesh=mesh, reduce_gradients=False)

    trainer = SameBatches(small, arguments, train_dataset=data)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if dist.get_rank() == 0:
        print("losses", " ".join(f"{loss:.4f}" for loss in losses))
        trainer.save_model(folder)
        same = LlamaForCausalLM.from_pretrained(folder).state_dict().keys()
        print("saved: a LlamaForCausalLM,", len(same), "tensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
