# Every command sets up what it needs by itself (tools/setup).
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-shell demo-down test test-fast lint bench bench-24b bench-sizing release lock clean

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
# Ansible refuses a locale that is not UTF-8; a bare machine may have none.
export LC_ALL := C.UTF-8

help:  ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:  ## Debian packages, .venv and the llama-cpp-python wheel, once
	@tools/setup

demo: setup  ## deploy to a disposable Debian host and ask it a legal question
	@python -m tools.demo

demo-shell:  ## log in to the demo host
	@python3 -m lab ssh demo vistral-demo

demo-down:  ## remove the demo host and every trace of it
	@python3 -m lab down demo

test: lint  ## the whole test suite: lint, unit, daemon, hosts, molecule
	@pytest -m ''

test-fast: lint  ## lint and the tests that need no host
	@pytest -m 'not slow and not host'

lint: setup  ## ruff, mypy, yamllint, ansible-lint
	ruff check .
	ruff format --check .
	mypy daemon/src lab tools bench
	yamllint --strict .
	ansible-lint -q

bench: setup  ## compare with llama.cpp's servers and rewrite docs/benchmarks.*; QUICK=1: only try
	@python -m bench $(if $(QUICK),--quick,--docs docs)

bench-24b: setup  ## a model of the 24B shape under 14 GB, and rewrite docs/benchmarks-24b.*
	@python -m bench.shape --docs docs

bench-sizing: setup  ## what `vistrald plan` predicts beside the measured peak, and rewrite docs/sizing.md
	@python -m bench.sizing --docs docs

release: setup  ## build the release that site.yml would deploy
	@python -m tools.wheelhouse

lock:  ## refresh the pinned requirements
	@tools/lock

clean:  ## remove .venv and tool caches from the tree; the cache outside it stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .ansible
