# make demo      chunk two real models and show memory and time before and after
# make test      set up and run the tests
# make check     lint, format, types, import contracts, the audit of the flow rules
# make bench     the measurements of docs/benchmarks.md
# make sanitize  a kernel under the address, thread and undefined-behaviour sanitizers
# make coverage  the table of docs/coverage.md
# make coverage-onnx  the table of docs/coverage-onnx.md: ONNX's own tests (half an hour)
# make picture   docs/timeline.png
# make mutants   500 wrong programs for the prover, none accepted; honest ones, none refused
# make kernel-mutants   200 lies about emitted kernels, none accepted
# make kernel-proving   time of the proofs of kernels up to Llama-70B and Mixtral-8x7B
# make shard-mutants  250 wrong sharded programs and runtimes, none accepted
# make shard-matrix   loss and gradients of every model, way, dtype and number of ranks (minutes)
# make shard-proving  the proof of a training step of Llama 8 B's shapes on 8 ranks, within 2 minutes;
#                and of small programs at all lengths to 131072, on 8 and 64 ranks
# make scaling   docs/scaling.md and its plot
# make agree     every obligation of three whole models, by Z3 and by cvc5
# make proving   time and memory of proofs, and their plot against depth
#
# PYTHON picks the interpreter (3.11 to 3.13), PIP_FLAGS goes to every pip install, WORKERS is the
# number of test processes, each on one thread.

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check bench sanitize coverage coverage-onnx picture mutants kernel-mutants kernel-proving shard-mutants shard-matrix shard-proving scaling agree proving format clean

# torch goes first and alone: it is the large one, and the rest then builds on the one chosen.
$(INSTALLED): pyproject.toml constraints.txt
	@echo 'installing into .venv (a minute or two)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[hf,dev]'
	touch $@

.venv: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m quire.demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	if test -f tools/audit_rules.py; then $(BIN)/python tools/audit_rules.py; fi

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

sanitize: $(INSTALLED)
	$(BIN)/python tools/sanitize.py

coverage-onnx: $(INSTALLED)
	$(BIN)/python tools/coverage_onnx.py

coverage: $(INSTALLED)
	$(BIN)/python tools/coverage.py

picture: $(INSTALLED)
	$(BIN)/python docs/make_timeline.py

mutants: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/mutate_run.py 510

kernel-mutants: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/mutate_kernel.py --mutants 200

kernel-proving: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/prove_kernels.py

shard-mutants: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/mutate_shard_run.py 250

shard-matrix: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -W ignore tools/shard_matrix.py --steps

shard-proving: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/prove_shards.py
	PYTHONPATH=. $(BIN)/python -W ignore tools/prove_shard_lengths.py 8
	PYTHONPATH=. $(BIN)/python -W ignore tools/prove_shard_lengths.py 64

scaling: $(INSTALLED)
	$(BIN)/python -W ignore -m benchmarks.scaling

agree: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python -W ignore tools/agree.py

proving: $(INSTALLED)
	$(BIN)/python -W ignore -m benchmarks.proving --plot docs/proving.svg

clean:
	rm -rf .venv build dist out
