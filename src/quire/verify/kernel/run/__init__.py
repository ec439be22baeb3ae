"""Emitted source, as parsed, run on numbers: those of a finite field, or float64.

numbers.py    what scalars are
cells.py      memory, byte by byte where buffers may share it
machine.py    statements and expressions, loops as whole tensors
hooks.py      q.dot, q.dot_bf16, q.attend, q.merge, q.topk and the scans
exact.py      the kernel and its graph in the field, compared without tolerance
witness.py    a run in floats that differs, as a script
"""
