# `make demo` and `make test` do everything on a fresh machine, set-up included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow mutants check reproduce bench clean

demo: $(VENV)/installed
	$(BIN)/thermoscope demo

# In two processes of one thread each: most tests are too small for two threads.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The whole model zoo and full reproductions: an hour or so.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow
	$(BIN)/python scripts/bench/coverage.py

# Do the tests notice small changes of the code? All of it takes hours; MUTANTS="'probes.fit.*' --sample 200" less.
MUTANTS ?=
mutants: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutants.py $(MUTANTS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# DATA holds MNIST/ as torchvision lays it out, CIFAR-10 as cifar10.npz, imagenet_samples/ with a folder per class,
# and the weights resnet50_v1.safetensors and inception_v3.safetensors.
DATA ?= data
reproduce: $(VENV)/installed
	$(BIN)/python scripts/reproduce/mnist_convnet.py --data-dir $(DATA)
	$(BIN)/python scripts/reproduce/pathological.py --data-dir $(DATA)
	$(BIN)/python scripts/reproduce/negative_eigenvalues.py --data-dir $(DATA)
	$(BIN)/python scripts/reproduce/negative_curvature_steps.py --data-dir $(DATA)
	$(BIN)/python scripts/reproduce/resnet50.py --checkpoint $(DATA)/resnet50_v1.safetensors \
		--cifar10 $(DATA)/cifar10.npz --samples $(DATA)/imagenet_samples
	$(BIN)/python scripts/reproduce/inception_v3.py --checkpoint $(DATA)/inception_v3.safetensors \
		--cifar10 $(DATA)/cifar10.npz
	$(BIN)/python scripts/reproduce/auto_reduction.py --checkpoint $(DATA)/resnet50_v1.safetensors \
		--cifar10 $(DATA)/cifar10.npz
	$(BIN)/python scripts/reproduce/future_work.py --data-dir $(DATA) --cifar10 $(DATA)/cifar10.npz

bench: $(VENV)/installed-bench
	$(BIN)/python scripts/bench/probe_overhead.py
	$(BIN)/python scripts/bench/hvp.py
	$(BIN)/python scripts/bench/eigenpairs.py
	$(BIN)/python scripts/bench/tracker.py --data-dir $(DATA)
	$(BIN)/python scripts/bench/store.py
	$(BIN)/python scripts/bench/probe_fit.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) mutants build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
