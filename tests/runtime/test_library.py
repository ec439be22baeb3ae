"""Kernels as libraries: called from C programs, they say what Python says."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

import quire
from quire.errors import QuireError
from tests.kernel.models import causal_lm

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    monkeypatch.setenv("QUIRE_CXXFLAGS", "-O1")


def said(folder, program, *words):
    """What a C program prints that includes `small.h` and links `small.so`."""
    (folder / "main.c").write_text('#include <stdio.h>\n#include "small.h"\n' + program)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    files = [str(folder / "main.c"), str(folder / "small.so"), "-o", str(folder / "main")]
    subprocess.run(["gcc", *flags, *files], check=True)
    run = subprocess.run([str(folder / "main"), *words], capture_output=True, text=True, check=True)
    return [float(x) for x in run.stdout.split()]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


GRAPH = """
int main(void) {
  float x[5 * 8], y[5 * 3];
  for (int k = 0; k < 40; ++k) x[k] = (float)(k % 7) - 3;
  small* model = small_open(2);
  if (small_run(model, 6, x, y) != 2) return 3;
  if (small_run(model, 5, x, y)) return 4;
  for (int k = 0; k < 15; ++k) printf("%.9g ", y[k]);
  small_close(model);
  return 0;
}
"""


def test_a_graph_from_c(tmp_path):
    torch.manual_seed(0)
    model = Small().eval()
    rows = torch.export.Dim("rows", min=1, max=5)
    fast = quire.fuse(model, (torch.zeros(3, 8),), dynamic_shapes=({0: rows},))
    fast.export(tmp_path / "small.so", header=tmp_path / "small.h")
    x = (torch.arange(40) % 7 - 3.0).reshape(5, 8)
    got = torch.tensor(said(tmp_path, GRAPH)).reshape(5, 3)
    assert torch.equal(got, fast(x))
    assert (got - model(x)).abs().max() < 1e-5


DECODER = """
#include <stdlib.h>
int main(int argc, char** argv) {
  small* model = small_open(2);
  small_session* session = small_start(model, 1);
  float logits[small_vocabulary];
  int64_t token;
  if (small_start(model, small_max_rows + 1)) return 3;
  for (int k = 1; k < small_max_length + 2; ++k) {
    token = k < argc ? atoi(argv[k]) : 0;
    const int code = small_step(session, &token, logits);
    if (code != (k <= small_max_length ? 0 : 2)) return 4;
    if (k + 1 == argc)
      for (int i = 0; i < small_vocabulary; ++i) printf("%.9g ", logits[i]);
  }
  small_end(session);
  small_close(model);
  return 0;
}
"""


@pytest.mark.parametrize("weights", [None, "int4", "lossless"])
def test_a_decoder_from_c(tmp_path, weights):
    model = causal_lm("qwen2", torch.bfloat16 if weights == "lossless" else torch.float32)
    fast = quire.fuse(model, max_length=16, max_batch=2, weights=weights)
    fast.export(tmp_path / "small.so", header=tmp_path / "small.h")
    ids = [5, 77, 300, 2, 41]
    got = torch.tensor(said(tmp_path, DECODER, *map(str, ids)))
    cache = fast.new_cache(1)
    cache.lengths = torch.zeros(1, dtype=torch.long)
    for token in ids:
        want = fast(torch.tensor([[token]]), past_key_values=cache).logits[0, 0]
    assert torch.equal(got, want)


SAMPLER = """
#include <stdlib.h>
int main(int argc, char** argv) {
  small* model = small_open(2);
  small_session* session = small_start(model, 1);
  int64_t token, next = 0;
  for (int k = 1; k <= small_max_length; ++k) {
    token = k < argc ? atoi(argv[k]) : next;
    if (small_next(session, &token, 0.8f, 0.05f, 42, &next)) return 3;
    if (k + 1 >= argc) printf("%d ", (int)next);
  }
  if (small_next(session, &token, 0.8f, 0.05f, 42, &next) != 2) return 4;
  small_end(session);
  small_close(model);
  return 0;
}
"""


def test_a_sampler_from_c(tmp_path):
    fast = quire.fuse(causal_lm("qwen2"), max_length=24, max_batch=2, sampling=True)
    fast.export(tmp_path / "small.so", header=tmp_path / "small.h")
    ids = [5, 77, 300, 2, 41]
    got = said(tmp_path, SAMPLER, *map(str, ids))
    asked = dict(max_new_tokens=20, temperature=0.8, min_p=0.05, seed=42)
    assert fast.sample(torch.tensor([ids]), **asked)[0, 5:].tolist() == got
    assert torch.tensor(said(tmp_path, DECODER, *map(str, ids))).shape == (320,)


def test_functions_need_a_name(tmp_path):
    fast = quire.fuse(Small().eval(), (torch.zeros(1, 8),))
    with pytest.raises(QuireError, match=r"named after 1-model.so"):
        fast.export(tmp_path / "1-model.so")
