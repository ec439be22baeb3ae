"""Train a small model to speak, then hear it three times: from Hugging Face, from `fast.generate`,
and from a C program that links the fused kernel.

    python examples/train_tiny.py [--steps 300] [--out FOLDER]

The text is made here: sums in words ("two plus three is five."). A Llama of two layers learns it
in about a minute on a laptop; what it says is then sums, not all of them right, and the same three
times.
"""

from __future__ import annotations

import argparse
import random
import string
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quire
from quire.runtime.build import compiler

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]  # fmt: skip
ALPHABET = "\n" + string.ascii_lowercase + " ."
LENGTH = 64

C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "tiny.h"

/* Reads token ids from the command line, after a count of tokens to write. */
int main(int argc, char** argv) {
  tiny* model = tiny_open(0);
  tiny_session* session = tiny_start(model, 1);
  float* logits = malloc(sizeof(float) * tiny_vocabulary);
  int64_t token = 0;
  for (int k = 2; k < argc; ++k) {
    token = atoi(argv[k]);
    if (tiny_step(session, &token, logits)) return 1;
  }
  for (int k = 0; k < atoi(argv[1]); ++k) {
    int best = 0;
    for (int i = 1; i < tiny_vocabulary; ++i)
      if (logits[i] > logits[best]) best = i;
    printf("%d ", best);
    token = best;
    if (tiny_step(session, &token, logits)) return 1;
  }
  free(logits);
  tiny_end(session);
  tiny_close(model);
  return 0;
}
"""


def sentence(pick: random.Random) -> str:
    a, b = pick.randrange(10), pick.randrange(10)
    return f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}.\n"


def encode(text: str) -> list[int]:
    return [ALPHABET.index(letter) for letter in text]


def decode(ids: list[int]) -> str:
    return "".join(ALPHABET[i] for i in ids)


def train(steps: int) -> LlamaForCausalLM:
    """A small Llama that has read sums for `steps` steps of 32 lines."""
    torch.manual_seed(0)
    pick = random.Random(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    steer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    slow = torch.optim.lr_scheduler.OneCycleLR(steer, 3e-3, total_steps=steps)
    for step in range(steps):
        lines = ["".join(sentence(pick) for _ in range(4))[:LENGTH] for _ in range(32)]
        ids = torch.tensor([encode(line.ljust(LENGTH, "\n")) for line in lines])
        loss = model(input_ids=ids, labels=ids).loss
        steer.zero_grad()
        loss.backward()
        steer.step()
        slow.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")
    return model.eval()


def said_by_c(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What a C program says that is compiled against `folder`'s library and header."""
    source, program = folder / "say.c", folder / "say"
    source.write_text(C_PROGRAM)
    c = compiler().replace("clang++", "clang").replace("g++", "gcc")
    command = [c, str(source), "-o", str(program), f"-I{folder}", str(folder / "tiny.so")]
    subprocess.run(command, check=True)
    words = [str(program), str(count), *map(str, prompt)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [int(word) for word in out.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = train(options.steps)
    fast = quire.fuse(model, max_length=LENGTH, max_batch=1)
    prompt = encode("three plus four is ")
    count = LENGTH - len(prompt) - 1
    said = {}
    ids = torch.tensor([prompt])
    for name, each in (("Hugging Face", model), ("fast.generate", fast)):
        out = each.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
        )
        said[name] = out[0, len(prompt) :].tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        fast.export(folder / "tiny.so", header=folder / "tiny.h")
        said["C"] = said_by_c(folder.resolve(), prompt, count)
    for name, tokens in said.items():
        print(f"--- {name}\n{decode(prompt)}{decode(tokens)}")
    if len({tuple(tokens) for tokens in said.values()}) != 1:
        raise SystemExit("they do not say the same")
    print("--- all three say the same")


if __name__ == "__main__":
    main()
