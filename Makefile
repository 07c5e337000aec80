# Everything keeps its environment in .venv; nothing is installed outside this folder, except Mosquitto from Debian's
# packages when there is none and you are root.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
EXPORTS := .venv-exports

.PHONY: help demo test test-rollouts test-exports check format sample-models measure bench-resources stack docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed ## Broker, Triton, gateway and cameras on this machine (DEMO_SECONDS=20 ends by itself)
	@exec $(BIN)/edge-gateway demo

stack: $(VENV)/.installed ## The embedded broker and Triton only
	@exec $(BIN)/edge-gateway stack

test: $(VENV)/.installed ## All tests, on a real Mosquitto and a real Triton
	$(BIN)/python -m pytest -m 'not long'

test-rollouts: $(VENV)/.installed ## Model drops from outside, the long tests too (half an hour on 2 cores)
	$(BIN)/python -m pytest --timeout=1800 tests/rollouts

# The tools' packages are of no use to anything else: they have an environment of their own, and write only to .cache.
test-exports: $(VENV)/.installed .cache/exports/.made ## Export models with their own public tools and ask them through the gateway (up to an hour on 2 cores)
	$(BIN)/python -m tests.exports.through_the_gateway

check: $(VENV)/.installed ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sample-models: $(VENV)/.installed ## Train and export the sample models again (up to 40 minutes on 2 cores)
	$(BIN)/python triton/samples/train.py

measure: $(VENV)/.installed ## Send all test scenes through a running gateway and write the model cards
	$(BIN)/python triton/samples/measure.py

bench-resources: $(VENV)/.installed ## Measure start, memory and CPU of the gateway itself on this machine
	$(BIN)/python -m tests.bench.resources

docs: $(VENV)/.installed ## Write docs/metrics.md, docs/errors.md and docs/configuration.md anew from the code
	$(BIN)/python docs/generate.py

clean: ## Remove the environment and what the targets made
	rm -rf $(VENV) $(EXPORTS) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output

# pip itself is left as it is; the CPU build of torch is taken where your package index offers one.
$(VENV)/.installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: as root run 'apt-get install python3-venv', or name another Python with make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV); the first time this downloads a few hundred megabytes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $@

.cache/exports/.made: $(EXPORTS)/.installed $(wildcard tests/exports/*_models.py)
	$(EXPORTS)/bin/python -m tests.exports --references .cache/exports/references
	@touch $@

# In two steps: the second three ask for versions of years ago, or for a build of OpenCV that needs a display.
$(EXPORTS)/.installed: tests/exports/requirements.txt
	@echo "Setting up $(EXPORTS); the first time this downloads more than a gigabyte"
	@test -x $(EXPORTS)/bin/python || $(PYTHON) -m venv $(EXPORTS)
	@echo '*' > $(EXPORTS)/.gitignore
	$(EXPORTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/exports/requirements.txt
	$(EXPORTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		ultralytics==8.4.190 yolov5==7.0.14 yolox==0.3.0
	@touch $@
