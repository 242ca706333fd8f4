# make serve   the service on the embedded demo model (PORT=5001; LLAVA_* and AZUREML_MODEL_DIR pass through)
# make test    every check and every test
# make check   lint, format, types and shell scripts, in seconds
# make quick   the fast tests that start no server process, in about a minute
# Each target first builds .venv with pinned versions, and again only when the pins change.

PORT ?= 5001
PYTHON ?= python3
# torch's OpenMP threads sleep while they wait. Threads that spin stall each other on shared cores.
export GOMP_SPINCOUNT ?= 0
export OMP_WAIT_POLICY ?= passive

# Two targets run at the same time: the two environments, the checks. Two files of tests run at the same time.
MAKEFLAGS += --jobs=2
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile

# The folders whose tests need no server process. The marker `slow` leaves out single tests.
QUICK := tests/api tests/engine tests/inputs tests/model tests/weights tests/service/test_settings.py \
	tests/repository/test_architecture.py tests/repository/test_imports.py

.PHONY: serve test quick check lint types shell

serve: .venv/installed
	.venv/bin/llava-serving serve --port $(PORT)

test: check .venv-azure/installed
	.venv/bin/python -m pytest $(SIDE_BY_SIDE)
	.venv-azure/bin/python -m pytest $(SIDE_BY_SIDE) --confcutdir tests/azure_sdk --disable-warnings tests/azure_sdk

quick: .venv/installed
	.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(QUICK)

check: lint types shell

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed
	.venv/bin/mypy

shell: .venv/installed
	.venv/bin/shellcheck -x scripts/deploy scripts/deploy-batch scripts/autoscale

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Azure's SDK, for tests and notebooks. It needs another OpenTelemetry than the inference server, so it has its own .venv.
.venv-azure/installed: tests/azure_sdk/requirements.txt
	$(PYTHON) -m venv .venv-azure
	.venv-azure/bin/pip install --quiet --requirement $<
	touch $@
