# One command for each thing a person wants: make demo, make test, make check, make bench.
# Python is Debian's own (libvirt and the lab's hosts see the same interpreter), in a private venv.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
LAB := deploy/lab/lab
UNIT := tests --ignore=tests/lab --ignore=tests/sim --ignore=tests/scenarios

.PHONY: help deps venv image lint check fmt unit sim sim-test test lab-test lab-alone lab-stories demo bench lock clean

help:
	@echo "make demo   drain a real host live in a lab of four machines on this one (root; about 8 minutes)"
	@echo "make test   every test, simulator and lab included (root; 23 minutes)"
	@echo "make check  format, lint, types, import contracts, unit tests (under two minutes)"
	@echo "make bench  figures as JSON lines, progress on stderr (root); fails only if one cannot be taken"
	@echo "make sim    random runs of the whole system in virtual time: RUNS=n from a fresh seed, SEED=n, BLOW='...'"
	@echo "make lock   resolve requirements.lock anew from pyproject.toml"

deps:
	@deploy/lab/install-packages

# pip checks every hash; --no-build-isolation takes setuptools from the lock too.
$(VENV)/.stamp: requirements.lock pyproject.toml | deps
	@echo "making $(VENV)" >&2 # stdout belongs to what was asked for: JSON lines of make bench
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
	@touch $@

venv: $(VENV)/.stamp

image: venv
	@$(LAB) image >/dev/null

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=deploy/lab $(BIN)/mypy deploy/lab/labkit
	$(BIN)/lint-imports

check: lint unit

fmt: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: venv
	$(BIN)/pytest -q -n 4 --dist worksteal $(UNIT) # many of them wait for programs

lab-test: lab-alone lab-stories

# What compares the machine before a lab with the machine after it.
lab-alone: image
	$(BIN)/pytest -v --durations=5 tests/lab/test_alone.py

# Two labs side by side, since most stories wait.
lab-stories: image
	$(BIN)/pytest -v -n 2 --dist loadfile --no-loadscope-reorder --durations=20 tests/lab --ignore=tests/lab/test_alone.py

# On the simulator: killed at every step, 500 fresh seeds, the kept ones, guards removed one at a time, scenarios.
sim-test: venv
	$(BESIDE) $(BIN)/pytest -q -n 2 --dist worksteal --durations=10 tests/sim tests/scenarios

sim: venv
	@$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(RUNS),--runs $(RUNS)) $(if $(BLOW),--blow '$(BLOW)')

# The labs leave some of the processors idle: the simulator takes that, and gives way (nice) whenever they want it.
test: lint unit lab-alone
	@$(MAKE) --no-print-directory -j2 sim-test lab-stories BESIDE="nice -n 19"

demo: image
	@deploy/demo/demo

bench: image
	@$(BIN)/python -m tests.bench

lock: venv
	$(BIN)/uv pip compile -q --generate-hashes --group dev --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .cache build *.egg-info
