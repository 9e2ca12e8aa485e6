# The story of skycairn, one verb a line. `make` lists them.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# cpu installs the pinned torch; cuda lets pip choose the newest build for your GPU
TORCH ?= cpu
# minutes that each kind of codec may be trained for: image, spectrum, segmap
MINUTES ?= 2.3 1.8 0.5
# where `make build-pile` puts the mock sky and the pile
WORK ?= work
BIN := $(VENV)/bin
FOLDERS := catalogs archives mocksky mirror tokenizers pile match pipeline report model cli
PIP_CONSTRAINT_cpu := -c constraints.txt
PIP_CONSTRAINT_cuda :=

.PHONY: help install install-test build-pile ingest codecs learned-pile judge-codecs train test crash-test check lint typing typecheck bench bench-gpu posteriors clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_CONSTRAINT_$(TORCH)) -e '.[$*]'
	touch $@

install: $(VENV)/installed-mock,plot ## make the environment in .venv
install-test: $(VENV)/installed-mock,plot,test

build-pile: install ## make the mock sky and build a pile of it
	$(BIN)/skycairn mock default --out $(WORK)/mocksky
	$(BIN)/skycairn build mock --root $(WORK)/mocksky --pile $(WORK)/pile --workers $(WORKERS)

ingest: install ## add a survey to the pile, or replace its release: SURVEY=gaia RELEASE=dr3 ROOT=folder
	$(BIN)/skycairn ingest $(SURVEY) $(if $(RELEASE),--release $(RELEASE)) $(if $(ROOT),--root $(ROOT)) \
		--pile $(WORK)/pile --workers $(WORKERS)

codecs: install ## train tiny codecs of images, spectra and segmentation maps on the pile, for MINUTES of each
	test -e $(WORK)/pile/pile.json || $(MAKE) build-pile
	$(BIN)/skycairn-tokenize train image --pile $(WORK)/pile --out $(WORK)/codecs --minutes $(word 1,$(MINUTES)) --threads $(WORKERS)
	$(BIN)/skycairn-tokenize train spectrum --pile $(WORK)/pile --out $(WORK)/codecs --minutes $(word 2,$(MINUTES)) --threads $(WORKERS)
	$(BIN)/skycairn-tokenize train segmap --pile $(WORK)/pile --out $(WORK)/codecs --minutes $(word 3,$(MINUTES)) --threads $(WORKERS)

learned-pile: install ## encode the pile's sky anew with the codecs of `make codecs`, into a pile that shares its parts
	test -e $(WORK)/codecs/codecs.lock || $(MAKE) codecs
	if test -e $(WORK)/learned/codecs.lock; then $(BIN)/skycairn refit --pile $(WORK)/learned \
		--codecs-from $(WORK)/codecs --workers $(WORKERS); else $(BIN)/skycairn build mock-learned \
		--root $(WORK)/mocksky --pile $(WORK)/learned --codecs-from $(WORK)/codecs --reuse $(WORK)/pile \
		--workers $(WORKERS); fi

train: install ## train a small model on the pile and score it on the test sky
	test -e $(WORK)/pile/pile.json || $(MAKE) build-pile
	$(BIN)/skycairn-train $(WORK)/pile --out $(WORK)/model --threads $(WORKERS)

test: install-test ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

crash-test: install-test ## fail and kill the store at every call, and builds at random moments: 40 minutes
	$(BIN)/skycairn mock default --out $(WORK)/mocksky
	$(BIN)/skycairn build mock --root $(WORK)/mocksky --pile $(WORK)/uncrashed --workers $(WORKERS)
	SKYCAIRN_SKY=$(WORK)/mocksky SKYCAIRN_PILE=$(WORK)/uncrashed $(BIN)/python -m pytest -s -m 'slow or not slow' \
		tests/pile/test_crash.py tests/pipeline/test_kill.py

check: install-test lint typecheck ## run every gate, the slow tests too
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not network and not gpu'

lint: install-test ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typing:
	@mkdir -p build/typing/skycairn
	@for d in $(FOLDERS); do ln -sfn ../../../$$d build/typing/skycairn/$$d; done

typecheck: install-test typing ## mypy, strict
	$(BIN)/mypy

judge-codecs: install ## hold the codecs of the pile and the learned ones against a sky without noise, on the held-out sky
	test -e $(WORK)/codecs/codecs.lock || $(MAKE) codecs
	$(BIN)/skycairn mock default --out $(WORK)/noise-free --noise-free
	$(BIN)/skycairn-tokenize quality $(WORK)/pile --truth $(WORK)/noise-free --codecs learned=$(WORK)/codecs/codecs.lock \
		--out $(WORK)/codec_quality.html

bench: install-test build-pile ## the same work done by us, by a peer, and held against the truth
	$(BIN)/python benchmarks/crossmatch.py
	$(BIN)/python benchmarks/photometry.py $(WORK)/mocksky
	$(BIN)/skycairn build benchmarks/all_sources.toml --root $(WORK)/mocksky --pile $(WORK)/all --workers $(WORKERS)
	$(BIN)/python benchmarks/photometry_pile.py $(WORK)/all $(WORK)/mocksky
	$(BIN)/python benchmarks/codec_errors.py $(WORK)/pile
	$(BIN)/python benchmarks/codec_throughput.py --threads $(WORKERS)
	$(BIN)/python benchmarks/train_step.py --size small --threads $(WORKERS)
	$(BIN)/python benchmarks/read_shards.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/match_truth.py
	$(BIN)/python benchmarks/match_reliability.py
	$(BIN)/python benchmarks/fetch.py --folder $(WORK)/fetch
	$(BIN)/skycairn mock default --out $(WORK)/mocksky2 --release 2 --first $(WORK)/mocksky
	$(BIN)/python benchmarks/ingest.py $(WORK)/mocksky $(WORK)/mocksky2 $(WORK)/bench

posteriors: $(VENV)/installed-mock,plot,bench ## p(number | image, spectrum, photometry) of small models against boosting and neighbours
	test -e $(WORK)/pile/pile.json || $(MAKE) build-pile
	$(BIN)/skycairn mock-pile --codecs-from $(WORK)/pile --pile $(WORK)/train-tier --workers $(WORKERS)
	for size in nano micro; do \
		$(BIN)/skycairn-train benchmarks/posteriors.toml --size $$size --out $(WORK)/tier-$$size && \
		$(BIN)/skycairn-train export $(WORK)/tier-$$size --pile $(WORK)/train-tier --out $(WORK)/tier-$$size/exported \
		|| exit 1; done
	$(BIN)/python benchmarks/posteriors.py $(WORK)/train-tier nano=$(WORK)/tier-nano/exported micro=$(WORK)/tier-micro/exported

bench-gpu: install-test ## useful MFU and objects/s of a training step on one GPU, by size, beside a peer
	$(BIN)/python benchmarks/gpu.py

clean: ## remove the environment and what was built
	rm -rf $(VENV) build $(WORK)
