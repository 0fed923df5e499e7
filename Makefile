# `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Values in .env may have quotes and a comment. The environment overrides .env, as in the settings.
dotenv = $(shell sed -nE 's/^(export +)?$(1)=//p' .env 2>/dev/null | tail -n 1 | \
  sed -E "s/[[:space:]]+\#.*//; s/[[:space:]]*$$//; s/^'(.*)'$$/\1/; s/^\"(.*)\"$$/\1/")
setting = $(or $($(1)),$(call dotenv,$(1)))

PYTHON ?= python3
PORT := $(or $(call setting,PORT),8001)
MODEL_NAME := $(or $(MODEL_NAME),$(VISION_MODEL_NAME),$(call dotenv,MODEL_NAME),$(call dotenv,VISION_MODEL_NAME))
MODEL_PRETRAINED := $(or $(MODEL_PRETRAINED),$(VISION_MODEL_PRETRAINED),$(call dotenv,MODEL_PRETRAINED),$(call dotenv,VISION_MODEL_PRETRAINED))
QDRANT_ENABLED := $(or $(call setting,QDRANT_ENABLED),true)
QDRANT_URL ?= http://localhost:6333
COLLECTION := $(or $(call setting,IMAGE_SEARCH_COLLECTION),daarion_images)
SIZE ?= 768
IMAGE := $(or $(call setting,IMAGE),vision-encoder:latest)
VENV := .venv
BIN := $(VENV)/bin

# These targets need a real model:
image fetch-weights: export MODEL_NAME := $(MODEL_NAME)
image fetch-weights: export MODEL_PRETRAINED := $(MODEL_PRETRAINED)
WANTED := $(MODEL_NAME)

# Without MODEL_NAME, serve the bundled model, which needs no download.
ifeq ($(MODEL_NAME),)
  MODEL_NAME := local-dir:models/shapes
  SAY_MODEL := echo "Serving the bundled model, which knows coloured shapes but no photographs." \
    "For a real model, set MODEL_NAME=ViT-L-14 MODEL_PRETRAINED=openai."
else
  SAY_MODEL := true
endif

export BENTOML_DO_NOT_TRACK := True
demo serve gpu-check: export PORT := $(PORT)
demo serve gpu-check image-run: export MODEL_NAME := $(MODEL_NAME)
demo serve gpu-check: export QDRANT_ENABLED := $(QDRANT_ENABLED)
image-run: export MODEL_PRETRAINED := $(or $(MODEL_PRETRAINED),openai)
image-run: export API_KEY := $(call setting,API_KEY)
image-run: export UI_PUBLIC := $(call setting,UI_PUBLIC)
collection: export QDRANT_API_KEY := $(call setting,QDRANT_API_KEY)

.PHONY: help install demo serve test test-fast nightly loadtest soak attack overload fidelity lint docs audit bento image image-run image-test fetch-weights gpu-check collection release-notes check-port check-driver

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

install: $(VENV)/.installed ## set up .venv and nothing else (6 to 8 GB, most of it torch; CUDA=12 or CUDA=13)

# The first installation chooses the set of packages by the driver. The set stays until CUDA asks for the other one.
CHOOSE := $(PYTHON) bento/doctor/driver.py --cuda '$(CUDA)'
INSTALLED := $(shell cat $(VENV)/.installed 2>/dev/null)
CHANGED := $(filter-out $(INSTALLED),$(if $(CUDA),$(or $(shell $(CHOOSE) 2>/dev/null),none),$(if $(wildcard $(VENV)/.installed),,new)))
.PHONY: $(if $(CHANGED),$(VENV)/.installed)

$(VENV)/.installed: pyproject.toml constraints.txt constraints-cuda12.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose one with PYTHON=python3.11")'
	@set -e; file=$$($(CHOOSE) --installed '$(INSTALLED)'); \
	  $(PYTHON) -m venv $(if $(and $(INSTALLED),$(CHANGED)),--clear) $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $$file -c constraints-dev.txt -e '.[dev]'; \
	  echo $$file >$@

demo: install check-port ## index 300 sample pictures, search them, keep serving (ONCE=1: stop)
	@$(SAY_MODEL)
	@$(BIN)/python -m models.shapes demo $(if $(ONCE),--once)

serve: install check-port ## serve on PORT (8001)
	@$(SAY_MODEL)
	@exec $(BIN)/bentoml serve service:VisionEncoder

PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install ## run the tests that every change needs (MARK=unit, service or browser; TESTS)
	$(PYTEST) -m "$(if $(MARK),$(MARK) and )not slow" $(TESTS)

test-fast: install ## run the unit tests, in under a minute
	$(PYTEST) -q -m unit

nightly: install ## run the slow tests, the attacks, then the soak
	$(BIN)/python -m pytest -m slow
	$(MAKE) attack
	$(MAKE) soak

# HOST in the environment may be the service's setting, an address to listen on.
loadtest: deployment = $(if $(or $(filter command,$(origin HOST)),$(filter http%,$(HOST))),$(HOST))
loadtest: install ## load the service for a minute: pass or fail (PROFILE, SHAPE, SECONDS, RATE, WEIGHTS; HOST)
	@$(BIN)/python -m loadtests --slo-profile $(or $(PROFILE),ci) $(if $(deployment),--host $(deployment)) \
	  $(if $(ROUTER),--router $(ROUTER)) $(if $(SHAPE),--shape $(SHAPE)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(WEIGHTS),--weights $(WEIGHTS))

soak: install ## send mixed traffic for 20 minutes (MINUTES) and fail if memory, files or threads leak
	$(BIN)/python -m benchmarks.soak --model shapes --minutes $(or $(MINUTES),20)

attack: install ## attack the service, and check what it costs in memory and time (20 minutes)
	$(BIN)/python -m benchmarks.attack

overload: install ## send four times what the service can do for 60 s
	$(BIN)/python -m benchmarks.serving --only overload

fidelity: install ## compare the embeddings with OpenCLIP's (MODEL_NAME)
	$(BIN)/python -m pytest tests/bento/encoder/test_fidelity.py -q

lint: install ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## generate docs/api.md, docs/settings.md and docs/benchmarks.md
	$(BIN)/python -m bento.web.api_docs >docs/api.md
	$(BIN)/python docs/settings.py >docs/settings.md
	$(BIN)/python -m benchmarks.results >docs/benchmarks.md

release-notes: ## print the changes of this version (bento/version.py)
	@version=$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' bento/version.py); \
	  awk -v version="$$version" '/^## / { found = index($$0, "[" version "]") } found' CHANGELOG.md | grep . || \
	  { echo "CHANGELOG.md has no section [$$version]" >&2; exit 1; }

audit: ## look up known vulnerabilities of the image's packages (needs PyPI's JSON API)
	$(PYTHON) -m venv .data/audit && .data/audit/bin/pip install --quiet pip-audit
	.data/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bento: install ## build the Bento from the committed files
	@if [ -n "$$(git status --porcelain)" ]; then echo "commit or stash your changes first:" \
	  "a Bento records the revision that it was built from"; exit 1; fi
	@trap 'rm -f bento/revision.txt sbom.cdx.json' EXIT; git rev-parse HEAD >bento/revision.txt && \
	  $(PYTHON) deploy/oci/sbom.py constraints-cuda12.txt >sbom.cdx.json && \
	  $(BIN)/bentoml build --label "revision=$$(cat bento/revision.txt)"

image: ## build the image with docker, podman or buildah (IMAGE, CPU=1, CUDA=13, COMPILER=1, BAKE_WEIGHTS=1, PUSH=1)
	@$(if $(BAKE_WEIGHTS),$(MAKE) --no-print-directory install CUDA=) # CUDA is for the image
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/oci/build.sh $(IMAGE)

image-run: check-port ## run the image on PORT (8001), with the bundled model unless MODEL_NAME is set
	@$(SAY_MODEL)
	@engine=$$(command -v docker || command -v podman) || { echo "install docker or podman first"; exit 1; }; \
	  $$engine image inspect $(IMAGE) >/dev/null 2>&1 || $$engine pull $(IMAGE) || \
	  { echo "there is no image $(IMAGE): build it with \`make image\`, or correct IMAGE"; exit 1; }; \
	  exec $$engine run --rm --init -p 127.0.0.1:$(PORT):8001 \
	  -e API_KEY -e UI_PUBLIC -e MODEL_NAME -e MODEL_PRETRAINED \
	  -e HF_HOME=/data/weights/huggingface -v vision-encoder-weights:/data/weights \
	  -e QDRANT_ENABLED=true -e QDRANT_PATH=/data/qdrant -v vision-encoder-qdrant:/data/qdrant \
	  -e THUMBNAILS_PATH=/data/thumbnails -v vision-encoder-thumbnails:/data/thumbnails $(IMAGE)

image-test: install ## build the image with podman and compare its answers with the checkout's
	@BIN="$(CURDIR)/$(BIN)" deploy/oci/test.sh

fetch-weights: install ## download the weights of MODEL_NAME into the cache (HF_HOME) and load them once
	@[ -n '$(WANTED)' ] || { echo "set MODEL_NAME, such as MODEL_NAME=ViT-L-14 MODEL_PRETRAINED=openai"; exit 1; }
	@$(BIN)/python -m bento.fetch_weights

# Before a download of 6 GB, say if it would be of no use. After it, the doctor checks the driver too.
check-driver: device = $(or $(DEVICE),$(VISION_DEVICE),$(call dotenv,DEVICE),$(call dotenv,VISION_DEVICE),auto)
check-driver:
	@$(CHOOSE) --check '$(device)'

gpu-check: $(if $(CHANGED),check-driver) install ## check whether this machine can run the service, and what to fix (JSON=1)
	@$(if $(JSON),:,$(SAY_MODEL))
	@$(BIN)/python -m bento.doctor $(if $(JSON),--json)

collection: ## create the collection on a Qdrant server (QDRANT_URL, SIZE=768)
	@curl -sS --fail-with-body -X PUT '$(QDRANT_URL)/collections/$(COLLECTION)' \
	  -H 'Content-Type: application/json' -H @<(echo "api-key: $$QDRANT_API_KEY") \
	  -d '{"vectors": {"size": $(SIZE), "distance": "Cosine"}}' && echo || { echo; \
	  echo "not created: does Qdrant run at QDRANT_URL=$(QDRANT_URL), and is $(COLLECTION) new?"; exit 1; }

check-port:
	@if (exec 3<>/dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null; then \
	  echo "port $(PORT) is in use: stop the program there, or choose another port with PORT=8002"; exit 1; fi
