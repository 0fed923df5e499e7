# make help lists what can be done.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# the environment goes before .env, as in the settings; there values may have quotes or a comment
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
IMAGE ?= vision-encoder:latest
VENV := .venv
BIN := $(VENV)/bin

# for what wants a real model
image fetch-weights: export MODEL_NAME := $(MODEL_NAME)
image fetch-weights: export MODEL_PRETRAINED := $(MODEL_PRETRAINED)
WANTED := $(MODEL_NAME)

# Without MODEL_NAME the bundled model is served: it needs no download.
ifeq ($(MODEL_NAME),)
  MODEL_NAME := local-dir:models/shapes
  SAY_MODEL := echo "Serving the bundled demonstration model, which knows no photographs;" \
    "for a real one: MODEL_NAME=ViT-L-14 MODEL_PRETRAINED=openai"
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

.PHONY: help install demo serve test loadtest soak overload fidelity lint api-docs audit bento image image-run image-test fetch-weights gpu-check collection check-port

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

install: $(VENV)/.installed ## set up .venv, nothing else (about 6 GB, most of it torch)

$(VENV)/.installed: pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-dev.txt -e '.[dev]'
	@touch $@

demo: install check-port ## index 300 sample pictures, search them, keep serving (ONCE=1: stop)
	@$(SAY_MODEL)
	@$(BIN)/python -m models.shapes demo $(if $(ONCE),--once)

serve: install check-port ## serve on PORT (8001)
	@$(SAY_MODEL)
	@exec $(BIN)/bentoml serve service:VisionEncoder

test: install ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# HOST in the environment may be the service's setting, an address to listen on
loadtest: deployment = $(if $(or $(filter command,$(origin HOST)),$(filter http%,$(HOST))),$(HOST))
loadtest: install ## a minute of load that ends in pass or fail (PROFILE, SHAPE, SECONDS, RATE, WEIGHTS; HOST)
	@$(BIN)/python -m loadtests --slo-profile $(or $(PROFILE),ci) $(if $(deployment),--host $(deployment)) \
	  $(if $(ROUTER),--router $(ROUTER)) $(if $(SHAPE),--shape $(SHAPE)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(WEIGHTS),--weights $(WEIGHTS))

soak: install ## 20 minutes of mixed traffic, and whether anything grows (MINUTES=20)
	$(BIN)/python -m benchmarks.soak --model shapes --minutes $(or $(MINUTES),20)

overload: install ## 60 s of four times what the service can do, with the model alone before and after
	$(BIN)/python -m benchmarks.serving --only overload

fidelity: install ## hold the embeddings to OpenCLIP's (MODEL_NAME: of another model)
	$(BIN)/python -m pytest tests/bento/encoder/test_fidelity.py -q

lint: install ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

api-docs: install ## write docs/api.md from the route table
	$(BIN)/python -m bento.web.api_docs >docs/api.md

audit: ## ask PyPI's advisories about the packages of the image (pip-audit in an environment of its own)
	$(PYTHON) -m venv .data/audit && .data/audit/bin/pip install --quiet pip-audit
	.data/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bento: install ## build the Bento from what is committed
	@if [ -n "$$(git status --porcelain)" ]; then echo "there are changes that are not committed:" \
	  "commit or stash them, since a Bento tells the revision that it was built from"; exit 1; fi
	@trap 'rm -f bento/revision.txt sbom.cdx.json' EXIT; git rev-parse HEAD >bento/revision.txt && \
	  $(PYTHON) deploy/oci/sbom.py >sbom.cdx.json && \
	  $(BIN)/bentoml build --label "revision=$$(cat bento/revision.txt)"

image: bento ## make the image of the Bento (docker, podman or buildah)
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/oci/build.sh $(IMAGE)

image-run: check-port ## run the image on PORT (8001), with the bundled model unless MODEL_NAME says
	@$(SAY_MODEL)
	@engine=$$(command -v docker || command -v podman) || { echo "neither docker nor podman is here"; exit 1; }; \
	  exec $$engine run --rm --init -p 127.0.0.1:$(PORT):8001 \
	  -e API_KEY -e UI_PUBLIC -e MODEL_NAME -e MODEL_PRETRAINED \
	  -e HF_HOME=/data/weights/huggingface -v vision-encoder-weights:/data/weights \
	  -e QDRANT_ENABLED=true -e QDRANT_PATH=/data/qdrant -v vision-encoder-qdrant:/data/qdrant \
	  -e THUMBNAILS_PATH=/data/thumbnails -v vision-encoder-thumbnails:/data/thumbnails $(IMAGE)

image-test: install ## build the image with podman and hold its answers to the checkout's
	@BIN="$(CURDIR)/$(BIN)" deploy/oci/test.sh

fetch-weights: install ## fetch the weights of MODEL_NAME into the cache (HF_HOME), and load them once
	@[ -n '$(WANTED)' ] || { echo "MODEL_NAME is needed, such as MODEL_NAME=ViT-L-14 MODEL_PRETRAINED=openai"; exit 1; }
	@$(BIN)/python -m bento.fetch_weights

gpu-check: install ## say whether this machine can run what `make serve` would start (JSON=1: as JSON)
	@$(if $(JSON),:,$(SAY_MODEL))
	@$(BIN)/python -m bento.doctor $(if $(JSON),--json)

collection: ## make the collection on a Qdrant server (QDRANT_URL, SIZE=768)
	@curl -sS --fail-with-body -X PUT '$(QDRANT_URL)/collections/$(COLLECTION)' \
	  -H 'Content-Type: application/json' -H @<(echo "api-key: $$QDRANT_API_KEY") \
	  -d '{"vectors": {"size": $(SIZE), "distance": "Cosine"}}' && echo || { echo; \
	  echo "not made: is Qdrant at QDRANT_URL=$(QDRANT_URL), and is $(COLLECTION) new?"; exit 1; }

check-port:
	@if (exec 3<>/dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null; then \
	  echo "port $(PORT) is taken: stop what runs there, or choose another one with PORT=8002"; exit 1; fi
