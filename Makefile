# Everything keeps its environment in .venv; nothing is installed outside this folder, except Mosquitto from Debian's
# packages when there is none and you are root.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
EXPORTS := .venv-exports
RELEASE := .venv-release
IMAGE := .venv-image

.PHONY: help demo test test-rollouts test-exports check format sample-models measure bench-resources stack docs clean \
	dashboards screenshots bench guard chaos soak overload fuzz lock sbom audit chart chart-files \
	replicas images images-save images-load test-images
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed ## Broker, Triton, gateway and cameras on this machine (DEMO_SECONDS=20 ends by itself)
	@exec $(BIN)/edge-gateway demo

stack: $(VENV)/.installed ## The embedded broker and Triton only
	@exec $(BIN)/edge-gateway stack

test: $(VENV)/.installed ## All tests, on a real Mosquitto and a real Triton
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not long'

test-rollouts: $(VENV)/.installed ## Model drops from outside, the long tests too (half an hour on 2 cores)
	$(BIN)/python -m pytest --timeout=1800 tests/rollouts

chaos: $(VENV)/.installed ## 15 minutes of faults at a real broker, Triton and gateway, and an audit of every snapshot
	$(BIN)/python -m tests.chaos --report chaos-report

soak: $(VENV)/.installed ## An hour at half capacity: memory, files and threads must stay as they are
	$(BIN)/python -m tests.chaos.soak

replicas: $(VENV)/.installed ## Three gateways and two Tritons go in turn for five minutes while cameras send, and what became of each snapshot
	$(BIN)/python -m tests.replicas --leave

fuzz: $(VENV)/.fuzz ## Ten minutes of coverage-guided input for each parser, then for the HTTP surface (over an hour on 2 cores; FUZZ="--target pictures")
	$(BIN)/python -m tests.fuzz --minutes 10 $(FUZZ)
	$(BIN)/python -m tests.fuzz.http --minutes 10

$(VENV)/.fuzz: $(VENV)/.installed requirements/fuzz.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

overload: $(VENV)/.installed ## Ten minutes of ten times more than can be answered: who is served, how fresh, and what it costs
	$(BIN)/python -m tests.chaos.overload

# The tools' packages are of no use to anything else: they have an environment of their own, and write only to .cache.
test-exports: $(VENV)/.installed .cache/exports/.made ## Export models with their own public tools and ask them through the gateway (up to an hour on 2 cores)
	$(BIN)/python -m tests.exports.through_the_gateway

check: $(VENV)/.installed ## Lint, format, types and security rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r gateway triton

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sample-models: $(VENV)/.installed ## Train and export the sample models again (up to 40 minutes on 2 cores)
	$(BIN)/python triton/samples/train.py

measure: $(VENV)/.installed ## Send all test scenes through a running gateway and write the model cards
	$(BIN)/python triton/samples/measure.py

bench: $(VENV)/.installed ## The gateway beside a straightforward script, Triton alone and the decoder alone (5 minutes; BENCH="--quick")
	$(BIN)/edge-gateway bench $(BENCH)

guard: $(VENV)/.installed ## Has a snapshot become dearer? Counts instructions, by perf or valgrind
	$(BIN)/python -m tests.bench.guard

bench-resources: $(VENV)/.installed ## Measure start, memory and CPU of the gateway itself on this machine
	$(BIN)/python -m tests.bench.resources

docs: $(VENV)/.installed ## Write the generated pages and schemas of docs/ anew from the code
	$(BIN)/python docs/generate.py

screenshots: $(VENV)/.installed ## Take docs/img/console-*.jpg and watch.svg anew from a running demo (3 minutes)
	$(BIN)/python docs/screenshots.py

dashboards: $(VENV)/.installed ## Write the dashboards of compose/grafana/ anew, and the runbook into the alerts (DASHBOARDS="--console URL --runbook URL")
	$(BIN)/python compose/grafana/write_dashboards.py $(DASHBOARDS)

chart-files: $(VENV)/.installed ## Write what the Helm chart has from elsewhere: schema, README's table, rules, dashboards
	$(BIN)/python helm/write_chart.py

chart: chart-files ## Lint the Helm chart strictly, render it with every file of helm/*/ci/, and pack it into dist/
	$(BIN)/python helm/package_chart.py

images: ## Build the images by docker or podman, and say how large they are (BUILD="--network=host")
	@$(PYTHON) compose/images/images.py build -- $(BUILD)

images-save: ## All images of compose in one archive in dist/ for a site without a network (IMAGES="--profile gpu")
	@$(PYTHON) compose/images/images.py save $(IMAGES)

images-load: ## Load that archive (IMAGES="--archive FILE")
	@$(PYTHON) compose/images/images.py load $(IMAGES)

test-images: $(VENV)/.installed ## Build the images and start compose from them, as root on Debian (10 minutes; IMAGES="--offline-bases")
	$(BIN)/python -m tests.images $(IMAGES)

clean: ## Remove the environment and what the targets made
	rm -rf $(VENV) $(EXPORTS) $(RELEASE) $(IMAGE) build dist chaos-report demo-output model_repository/.edge-gateway \
		.cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis

# Versions and hashes of everything that is installed; on site the same as in the tests. torch and what only its CUDA
# build needs are left out: the CPU build of the same version comes from another index, and has other hashes. Of
# nvidia-pytriton the image runs the server alone, so what else it asks for is left out there.
lock: $(RELEASE)/.installed ## Write requirements/*.txt anew from pyproject.toml
	@set -e; compile="$(RELEASE)/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header"; \
	cuda=$$($$compile --extra local | sed -nE 's/^((nvidia-(cu|n[cv])|cuda-)[a-z0-9-]*)==.*/--no-emit-package \1/p'); \
	$$compile --extra test --extra check --no-emit-package torch --no-emit-package triton $$cuda -o requirements/development.txt; \
	$$compile -c requirements/development.txt -o requirements/gateway.txt; \
	$$compile --extra fuzz -c requirements/development.txt -o requirements/fuzz.txt; \
	for extra in signing tracing video; do \
		$$compile --extra $$extra -c requirements/development.txt -o requirements/$$extra.txt; done; \
	only="$(RELEASE)/bin/uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-header -c requirements/development.txt"; \
	echo 'hatchling>=1.27' | $$only -o requirements/build.txt; \
	torch=$$(sed -nE 's/^  "(torch==[^"]+)".*/\1/p' pyproject.toml); \
	{ printf '%s\n' onnxruntime numpy "$$torch" | $$only --no-emit-package torch --no-emit-package triton $$cuda; \
		echo nvidia-pytriton | $$only --no-deps; } > requirements/triton-cpu.txt; \
	$$compile --extra release -o requirements/release.txt

sbom: $(RELEASE)/.installed $(IMAGE)/.installed ## Software bill of materials (dist/gateway.cdx.json) and docs/licences.md of what runs on site
	@mkdir -p dist
	$(RELEASE)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o dist/gateway.cdx.json $(IMAGE)
	$(RELEASE)/bin/python docs/licences.py $(IMAGE)/bin/python

audit: $(RELEASE)/.installed ## Known vulnerabilities of what runs on site (asks a public database)
	$(RELEASE)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/gateway.txt \
		-r requirements/signing.txt -r requirements/tracing.txt

# Only what the lock names is installed, then what is left: torch. pip itself is left as it is; the CPU build of torch is
# taken where your package index offers one.
$(VENV)/.installed: pyproject.toml requirements/development.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: as root run 'apt-get install python3-venv', or name another Python with make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV); the first time this downloads a few hundred megabytes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/development.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[test,check]'
	@touch $@

$(RELEASE)/.installed: requirements/release.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# As in the image: the gateway with its extras, from locks alone.
$(IMAGE)/.installed: requirements/gateway.txt requirements/signing.txt requirements/tracing.txt $(RELEASE)/.installed
	@test -x $(IMAGE)/bin/python || $(PYTHON) -m venv --without-pip $(IMAGE)
	$(RELEASE)/bin/uv pip sync --quiet --python $(IMAGE)/bin/python --require-hashes requirements/gateway.txt \
		requirements/signing.txt requirements/tracing.txt
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
