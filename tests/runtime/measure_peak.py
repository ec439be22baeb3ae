"""Measures a two-layer decoder at 1024 tokens, eager attention, in this process: for each budget
given, prints the measured peak and the plan's as JSON. Wants `quire.measure.environment()`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import quire.pipeline
from quire.cost.machine import REFERENCE
from quire.measure import peak_rise

sys.path.insert(0, str(Path(__file__).parents[1]))

from apply.models import Decoder

torch.set_num_threads(1)
torch.manual_seed(0)
quire.pipeline.machine = lambda *_: REFERENCE
model = Decoder(heads=8, kv=8, eager=True, vocabulary=6000).eval()
ids = torch.randint(6000, (1, 1024))
rows = []
with torch.inference_mode():
    for memory in map(json.loads, sys.argv[1:]):
        small = quire.chunk(model, (ids,), memory=memory)
        rows.append([peak_rise(lambda run=small: run(ids), ids.device), small.plan.peak_bytes])
    rows.append([peak_rise(lambda: model(ids), ids.device), small.plan.baseline_bytes])
print(json.dumps(rows))
