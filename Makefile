# make serve   the service on the embedded demo model (PORT=5001; LLAVA_* and AZUREML_MODEL_DIR pass through)
# make playground   a web page to talk to the service, which it starts if needed, or to any endpoint with URL=https://...
# make test    every check and every test
# make check   lint, format, types and shell scripts, in seconds
# make lock    writes requirements.lock; make audit checks it for known vulnerabilities (both need the network)
# make quick   the fast tests that start no server process, in about a minute
# Each target first builds .venv with pinned versions, and again only when the pins change.

PORT ?= 5001
PLAYGROUND_PORT ?= 7860
PYTHON ?= python3
# torch's OpenMP threads sleep while they wait. Threads that spin stall each other on shared cores.
export GOMP_SPINCOUNT ?= 0
export OMP_WAIT_POLICY ?= passive

# Two targets run at the same time: the environments, the checks. Two files of tests run at the same time, in the order
# of collection.
MAKEFLAGS += --jobs=2
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The folders whose tests need no server process. The marker `slow` leaves out single tests.
QUICK := tests/api tests/engine tests/inputs tests/model tests/weights tests/service/test_settings.py \
	tests/repository/test_architecture.py tests/repository/test_imports.py

.PHONY: serve playground test quick check lint types shell files chromium lock audit

serve: .venv/installed
	.venv/bin/llava-serving serve --port $(PORT)

playground: .venv-playground/installed $(if $(URL),,.venv/installed)
	@URL='$(URL)' PORT=$(PORT) PLAYGROUND_PORT=$(PLAYGROUND_PORT) scripts/playground

test: check .venv-azure/installed .venv-playground/installed-tests chromium
	.venv/bin/python -m pytest $(SIDE_BY_SIDE)
	.venv-azure/bin/python -m pytest $(SIDE_BY_SIDE) --confcutdir tests/azure_sdk --disable-warnings tests/azure_sdk
	.venv-playground/bin/python -m pytest $(SIDE_BY_SIDE) --confcutdir tests/playground tests/playground

quick: .venv/installed
	.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(QUICK)

check: lint types shell files

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed
	.venv/bin/mypy

shell: .venv/installed
	.venv/bin/shellcheck -x scripts/deploy scripts/deploy-batch scripts/autoscale scripts/monitor scripts/playground scripts/audit

# The Dockerfile and the workflows. None of these tools asks the network. hadolint exists for Linux only.
files: .venv/installed
	[ ! -x .venv/bin/hadolint ] || .venv/bin/hadolint Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/zizmor --offline --quiet .github/workflows

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Azure's SDK, for tests and notebooks. It needs another OpenTelemetry than the inference server, so it has its own .venv.
.venv-azure/installed: tests/azure_sdk/requirements.txt
	$(PYTHON) -m venv .venv-azure
	.venv-azure/bin/pip install --quiet --requirement $<
	touch $@

# requirements.lock again, after a change of versions, and a check of it for known vulnerabilities. Both need the network.
lock: .venv/installed
	.venv/bin/python scripts/lock.py

audit:
	PYTHON=$(PYTHON) scripts/audit

# gradio, for the playground. It needs another Pillow than the service, so it has its own .venv.
.venv-playground/installed: src/llava_serving/playground/requirements.txt
	$(PYTHON) -m venv .venv-playground
	.venv-playground/bin/pip install --quiet --requirement $<
	touch $@

.venv-playground/installed-tests: tests/playground/requirements.txt .venv-playground/installed
	.venv-playground/bin/pip install --quiet --requirement $<
	touch $@

# The browser of the playground's tests, which skip themselves without it. Only root can install it.
chromium:
	@if ! command -v chromium > /dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null || true; fi
