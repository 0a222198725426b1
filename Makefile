# On a fresh machine with python3 (3.10 or newer), make and access to a package index, `make demo` and `make test` each
# do everything: create .venv, install what constraints.txt pins, run.
PYTHON ?= python3
WORKERS ?= 2
ZOO_SEED ?= $(shell date +%Y%m%d)
BENCHMARKS := accuracy count_time trace_scale import_time overhead step_cost
BIN := .venv/bin
CORE := .venv-core/bin
# A file's tests in one process, files in the order of collection. Not by xdist_group: pytest-xdist 3.8 does not see it
# under pytest 9.2, and says nothing.
IN_PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP := -m pip install --quiet --disable-pip-version-check
PIP_INSTALL := $(PIP) --constraint constraints.txt
# Another torch than the pinned one, for `make test-torch TORCH=...`.
TORCH ?= 2.14.1
TORCH_VENV := .venv-torch-$(TORCH)
TORCH_TESTS := tests/counting tests/formulas tests/fvcore tests/measuring tests/tracing tests/callback

# What shows that the wheel is whole, and what it says without Lightning and trackers: some tests of each room.
WHEEL_TESTS := test_import test_packaging test_public_names test_on_demand test_testing callback/test_recorder \
	cli/test_command cli/test_page counting/test_dispatch counting/test_shadows formulas/test_embedding_bag \
	fvcore/test_docs measuring/test_latency reporting/test_comparison_table reporting/test_markdown trackers/test_who_counted

.PHONY: demo pictures test test-fast zoo lint bench gpu-check doors package test-wheel test-core test-torch clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py

# The pictures of the report page in README and docs; with DEMO=1 of the profile that `make demo` left.
pictures: .venv/.installed
	$(BIN)/python docs/images/take.py $(if $(DEMO),--demo)

test: lint
	$(BIN)/python -m pytest $(IN_PARALLEL)
	@$(MAKE) --no-print-directory test-wheel

# While one works: what takes less than a minute.
test-fast: .venv/.installed
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow"

# Every architecture in every mode, of other sizes each day: ids of failed tests name the seed to see them again with.
zoo: .venv/.installed
	$(BIN)/python -m pytest -n $(WORKERS) tests/zoo --zoo $(ZOO_SEED)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv/.installed
	@set -e; for script in $(BENCHMARKS:%=benchmarks/%.py); do echo "== $$script"; $(BIN)/python $$script; done

# What is said about GPUs, held against the one that is here, in at most eight minutes; skipped where there is none. In
# the environment of GPU_PYTHON, which has a torch for it: `make gpu-check GPU_PYTHON=python`.
GPU_PYTHON ?= $(BIN)/python
gpu-check: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.installed)
	PYTHONPATH=.:integrations $(GPU_PYTHON) benchmarks/gpu_check.py

# Trainings by other packages, each as without us and with the FLOPs that it has on paper: docs/doors.md. Not part of
# `make test`.
doors: .venv-doors/.installed
	@for script in examples/doors/use_*.py; do .venv-doors/bin/python -W ignore $$script || failed=1; done; test -z "$$failed"

# torchvision comes with fastai, no script needs it, and PyPI's build does not load beside a CPU build of torch.
.venv-doors/.installed: examples/doors/requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-doors
	.venv-doors/bin/python $(PIP) --upgrade pip
	.venv-doors/bin/python $(PIP) --requirement examples/doors/requirements.txt --build-constraint constraints.txt --editable .
	.venv-doors/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

# The source archive first and the wheel out of it, so that what is missing from either shows.
package: .venv/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/check-wheel-contents dist/*.whl

# Against the wheel, where neither Lightning nor a tracker is installed. Not `python -m pytest`, which would put the
# source tree before the installed wheel.
test-wheel: .venv-core/.made package
	$(CORE)/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	$(CORE)/pytest $(IN_PARALLEL) --core-only $(WHEEL_TESTS:%=tests/%.py)

# All tests of the core, which `make test` has run from the source tree, in the same way.
test-core: .venv-core/.made package
	$(CORE)/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	$(CORE)/pytest $(IN_PARALLEL) --core-only

# What depends on torch most, under a torch that constraints.txt does not pin. Not part of `make test`: each has an
# environment of its own, of several gigabytes where the index has only builds for CUDA. They run on the CPU too.
test-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python -m pytest $(IN_PARALLEL) $(TORCH_TESTS)

$(TORCH_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(TORCH_VENV)
	grep -v '^torch==' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/python $(PIP_INSTALL) --upgrade pip
	$(TORCH_VENV)/bin/python $(PIP) --constraint $(TORCH_VENV)/constraints.txt --build-constraint constraints.txt \
	  torch==$(TORCH) --editable '.[all]' --group dev
	touch $@

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --upgrade pip
	$(BIN)/python $(PIP_INSTALL) --build-constraint constraints.txt --editable '.[all]' --group dev
	touch $@

.venv-core/.made: pyproject.toml constraints.txt | package
	$(PYTHON) -m venv --clear .venv-core
	$(CORE)/python $(PIP_INSTALL) --upgrade pip
	$(CORE)/python $(PIP_INSTALL) --group test dist/*.whl
	touch $@

clean:
	rm -rf .venv .venv-core .venv-torch-* .venv-peers .venv-doors build dist demo_output sweep_output sweep_wandb_output sweep_mlflow_output flopcallback_report* lightning_logs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
