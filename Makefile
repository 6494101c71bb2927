# Runnel. `make` alone prints this help. Everything runs from .venv, which the targets set up themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
V := .venv/bin
TESTS_PARALLEL ?= 2
PYTEST := $(V)/pytest -q -n $(TESTS_PARALLEL)
IMAGE_BASE ?= debian:bookworm-slim
# Where bytecode is not kept every process compiles what it imports: a node's start takes 5 CPU seconds more.
unexport PYTHONDONTWRITEBYTECODE
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: help setup run demo up down ps logs test check lint types floors format protos unit sim integration conformance chaos-local chaos chaos-short chaos-long bench bench-cluster lock clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Runnel needs Python 3.11 or newer; '$(PYTHON)' is not. Try: apt-get install python3 (Debian 12), or make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	@command -v git >/dev/null || { echo "git is missing: apt-get install git"; exit 1; }
	$(PYTHON) -m venv .venv
	$(V)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt

# The development set contains the run set, so whichever was installed last serves both.
.venv/.run: requirements/run.txt pyproject.toml | .venv/bin/uv
	@test -e .venv/.dev || $(V)/uv pip sync -q --python $(V)/python --require-hashes requirements/run.txt
	@$(V)/uv pip install -q --python $(V)/python --no-deps -e .
	@touch $@

.venv/.dev: requirements/dev.txt pyproject.toml | .venv/bin/uv
	@$(V)/uv pip sync -q --python $(V)/python --require-hashes requirements/dev.txt
	@$(V)/uv pip install -q --python $(V)/python --no-deps -e .
	@touch $@ .venv/.run

# The line protocol kernel, compiled for this machine: else a user's first write would wait for it.
.venv/.kernel: $(wildcard wire/lineprotocol/*.py) | .venv/.run
	@$(V)/python -m wire.lineprotocol.warm
	@touch $@

setup: .venv/.dev .venv/.kernel ## Create .venv with everything for development

run: .venv/.run .venv/.kernel ## Start Runnel as one process: HTTP on 127.0.0.1:8181, data in ./runnel-data
	@$(V)/runnel start --data runnel-data

demo: .venv/.run .venv/.kernel ## Start it with sample data loaded and print what to paste
	@$(V)/runnel demo

up: .venv/.run .venv/.kernel ## Start a cluster as local processes: gateways on 127.0.0.1:8181 and :8182, data in ./runnel-cluster
	@$(V)/runnel cluster up

down: .venv/.run ## Stop it cleanly; the data stays
	@$(V)/runnel cluster down

ps: .venv/.run ## List its processes, whether each is ready, and their ports
	@$(V)/runnel cluster ps

logs: .venv/.run ## Follow one node's log: make logs NODE=ingest-1
	@test -n "$(NODE)" || { echo "Which node? make logs NODE=ingest-1; make ps lists them"; exit 2; }
	@$(V)/runnel cluster logs $(NODE) --follow

lint: .venv/.dev ## Ruff: rules and format
	$(V)/ruff check .
	$(V)/ruff format --check .

format: .venv/.dev ## Rewrite the sources in the project's format
	$(V)/ruff check --fix .
	$(V)/ruff format .

types: .venv/.dev ## mypy strict over code and tests
	$(V)/mypy

floors: .venv/.dev ## Who may import whom (import-linter)
	$(V)/lint-imports --no-cache

protos: .venv/.dev ## Generate the code beside protos/*.proto and engine/*.proto again
	$(V)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(V)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(V)/protoc-gen-mypy_grpc \
	  --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. protos/*.proto
	$(V)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(V)/protoc-gen-mypy --python_out=. --mypy_out=. engine/*.proto

check: lint types floors unit ## What every commit passes

unit: .venv/.dev .venv/.kernel ## Pure tests: no sockets, no sleeps
	$(PYTEST) tests/unit

sim: .venv/.dev .venv/.kernel ## Seeded and exhaustive searches of the real code over virtual stores
	$(PYTEST) tests/sim

integration: .venv/.dev .venv/.kernel ## Real processes on free ports
	$(PYTEST) tests/integration

conformance: .venv/.dev .venv/.kernel ## Clients that nobody here wrote
	$(PYTEST) tests/conformance

test: .venv/.kernel lint types floors ## Everything that CI runs
	$(PYTEST) tests/unit tests/sim tests/integration tests/conformance tests/chaos

chaos-local: .venv/.dev ## 50 rounds of kill -9 under load, and again with lost answers
	$(V)/python -m tests.chaos.kill_rounds --rounds 50

chaos: .venv/.dev ## 20 rounds of faults against a whole cluster (as root also cut networks); prints its seed
	$(V)/python -m tests.chaos.cluster_rounds --rounds 20

chaos-short: .venv/.dev ## 3 rounds of that, the same each time
	$(V)/python -m tests.chaos.cluster_rounds --rounds 3 --seed 1

chaos-long: .venv/.dev ## 200 rounds of that
	$(V)/python -m tests.chaos.cluster_rounds --rounds 200

bench-cluster: .venv/.dev ## Fail-over, restarts under load, ingest and queries of a whole cluster; results in benchmarks/results
	$(V)/python -m benchmarks.cluster --store

bench: .venv/.dev .venv/.kernel ## Loads against Runnel and its peers, then compaction, deletes, views, Ray; results in benchmarks/results
	$(V)/python -m benchmarks.run
	$(V)/python -m benchmarks.tables

lock: .venv/bin/uv ## Resolve the dependencies again (writes requirements/*.txt)
	$(V)/uv pip compile -q --upgrade --generate-hashes --no-header --extra demo pyproject.toml -o requirements/run.txt
	$(V)/uv pip compile -q --generate-hashes --no-header --extra demo --extra ray --extra dev -c requirements/run.txt pyproject.toml -o requirements/dev.txt
	echo hatchling | $(V)/uv pip compile -q --generate-hashes --no-header -c requirements/dev.txt - -o requirements/build.txt
	printf 'moto[s3]\nflask\nflask-cors\n' | $(V)/uv pip compile -q --generate-hashes --no-header -c requirements/dev.txt - -o requirements/s3.txt
	echo ray | $(V)/uv pip compile -q --generate-hashes --no-header -c requirements/dev.txt - -o requirements/ray.txt
	echo uv | $(V)/uv pip compile -q --upgrade --generate-hashes --no-header - -o requirements/uv.txt

clean: ## Remove what was built (not your data)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: image compose-up compose-down compose-test

image: ## Build the container image `runnel` (docs/containers.md)
	@deploy/base-image.sh $(IMAGE_BASE)
	@for cert in /usr/local/share/ca-certificates/*.crt; do [ ! -e "$$cert" ] || cp -p "$$cert" deploy/certs/; done
	docker build --build-arg BASE=$(IMAGE_BASE) --target runtime -t runnel .

compose-up: ## Start the cluster of docker-compose.yml: gateways on 127.0.0.1:8181 and :8182
	@docker image inspect runnel >/dev/null 2>&1 || { echo "There is no image yet: make image"; exit 1; }
	@$(COMPOSE) up -d
	@echo "Runnel listens on http://127.0.0.1:8181 and http://127.0.0.1:8182; stop it with make compose-down"

compose-down: ## Stop it cleanly; the volumes with the data stay
	@$(COMPOSE) --profile demo --profile s3 --profile observability down

compose-test: .venv/.dev image ## Build, start, write, query and hurt that cluster for real (half an hour; one-way cuts need root)
	docker build --build-arg BASE=$(IMAGE_BASE) --target s3 -t runnel-s3 .
	docker build --build-arg BASE=$(IMAGE_BASE) --target ray -t runnel-ray .
	docker build --build-arg BASE=$(IMAGE_BASE) -f deploy/prometheus.Dockerfile -t runnel-prometheus .
	COMPOSE_TESTS=1 $(V)/pytest -v -rP tests/compose
