# What a person types. Each target installs what it needs into .venv, from constraints.txt.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= models
BIN := $(VENV)/bin

sources := $(shell find protos server client training -name '*.py' -o -name '*.proto' -o -name '*.pyi')
install := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Two pips in one virtual environment get in each other's way.
.NOTPARALLEL:

.PHONY: help demo serve train train-all test test-node bench check lint proto clean

help:
	@echo 'make demo    train three models, serve them, predict, print what happened'
	@echo 'make serve   train what is missing in $(MODELS)/ and serve it until Ctrl-C'
	@echo 'make train   train what is missing in $(MODELS)/'
	@echo 'make train-all  train every recipe on all its data in $(MODELS)/ (hours), print the table'
	@echo 'make test    run the tests'
	@echo 'make test-node  run those of client/node alone (needs node and npm)'
	@echo 'make bench   compare servers in bench/, then what batching is worth; 20 minutes'
	@echo '             (needs h2load, Debian: nghttp2-client; BENCH="--against mlserver,triton")'
	@echo 'make check   lint, type-check, check the layers; writes nothing'
	@echo 'make lint    format and mend what can be mended'
	@echo 'make proto   write the generated files of protos/'
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
	$(BIN)/python -m neurona_training.long_memory --out $(MODELS)/long_memory.png
	$(BIN)/neurona-train --table $(MODELS)

test: $(BIN)/.installed-dev $(VENV)/triton/.installed $(VENV)/node/.installed
	TRITON_PYTHON=$(VENV)/triton/bin/python NODE_MODULES=$(VENV)/node/node_modules \
	    $(BIN)/pytest

test-node: $(BIN)/.installed-dev $(VENV)/node/.installed
	NODE_MODULES=$(VENV)/node/node_modules $(BIN)/pytest tests/client/test_node.py

bench: $(BIN)/.installed-dev
	$(BIN)/python tests/benchmarks/run.py $(BENCH)
	$(BIN)/python tests/benchmarks/batching.py
	$(BIN)/python tests/benchmarks/client.py

check: $(BIN)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lint: $(BIN)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(BIN)/.installed-dev
	PYTHON=$(BIN)/python sh protos/generate.sh

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
