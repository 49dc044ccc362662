# Each target makes its own environment (./.venv) when there is none, or when pyproject.toml or .ci/constraints.txt changed.
# A Python of your choice: make PYTHON=/path/to/python3.12 test

.PHONY: demo test thorough chaos soak fuzz lint docs bench bench-exact bench-distill audit clean
BIN := .venv/bin
STAMP := .venv/.installed

demo: $(STAMP)
	$(BIN)/targetsmith demo

# Files side by side in two processes, each with one thread; in the order of their names, so that those that wait for Ray are not
# left to the end. ARGS=-n0 for one process (a debugger, a quiet timing).
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# All tests but those of faults, with twice the random cases (an hour).
thorough: $(STAMP)
	TARGETSMITH_EFFORT=2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not chaos and not soak" $(ARGS)

# Faults on purpose (docs/CONTRIBUTING.md): all kinds in minutes; kills, TARGETSMITH_KILLS of them (an hour), with a table.
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -m chaos $(ARGS)

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.soak --kills $${TARGETSMITH_KILLS:-120} $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation as a site in docs_out/ (open docs_out/index.html); a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file .mkdocs.yml

bench: $(STAMP)
	$(BIN)/python -m benchmarks.throughput $(ARGS)

bench-exact: $(STAMP)
	$(BIN)/python -m benchmarks.exact $(ARGS)

bench-distill: $(STAMP)
	$(BIN)/python -m benchmarks.distill --out distill_out $(ARGS)

# Outputs damaged in 896 ways: verify finds each, or it is harmless. 112 of them are in `make test`.
fuzz: $(STAMP)
	TARGETSMITH_EFFORT=8 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 --timeout=0 -s $(ARGS) tests/verify/test_fuzz.py

# Known holes in the pinned packages; wants a network. In an environment of its own, so that its needs do not move our pins.
audit: $(STAMP)
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit
	.venv/audit/bin/pip-audit --strict --requirement .ci/constraints.txt --no-deps --disable-pip $(ARGS)

clean:
	rm -rf .venv demo_out docs_out

$(STAMP): pyproject.toml .ci/constraints.txt .ci/venv
	@PYTHON="$(PYTHON)" ./.ci/venv
	@touch $@
