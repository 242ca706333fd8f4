# make serve   the service on the embedded demo model (PORT=5001; LLAVA_* and AZUREML_MODEL_DIR pass through)
# make test    every check and test
# Both build .venv first, with pinned versions, and again only when the pins change.

PORT ?= 5001
PYTHON ?= python3
# torch's OpenMP threads sleep when they wait: spinning ones stall each other on shared cores.
export GOMP_SPINCOUNT ?= 0
export OMP_WAIT_POLICY ?= passive

# The two environments are built at the same time, and two files of tests run at a time.
MAKEFLAGS += --jobs=2
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile

.PHONY: serve test check

serve: .venv/installed
	.venv/bin/llava-serving serve --port $(PORT)

test: check .venv-azure/installed
	.venv/bin/python -m pytest $(SIDE_BY_SIDE)
	.venv-azure/bin/python -m pytest $(SIDE_BY_SIDE) --confcutdir tests/azure_sdk --disable-warnings tests/azure_sdk

check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck -x scripts/deploy scripts/deploy-batch scripts/autoscale

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Azure's SDK, for tests and notebooks. Its OpenTelemetry is not the inference server's, so it lives apart.
.venv-azure/installed: tests/azure_sdk/requirements.txt
	$(PYTHON) -m venv .venv-azure
	.venv-azure/bin/pip install --quiet --requirement $<
	touch $@
