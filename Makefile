# The two commands of the README are `make demo` and `make test`; each fetches what it lacks.
# CUDA=1 fetches the CUDA libraries as well.

CARGO ?= cargo
PYTHON ?= python3
export CUDA

.DEFAULT_GOAL := help
.PHONY: help demo test lint provision

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  CUDA=1 make …   the same with the CUDA libraries"

demo: provision ## Start a server and compare two models on real images
	$(CARGO) run -- demo --data-dir .gauntlet

test: provision ## Run all tests
	$(CARGO) test --lib --bins --tests

lint: provision ## Check formatting and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

provision: ## Fetch libtorch and, where missing, PostgreSQL (quick when they are there)
	@$(PYTHON) scripts/provision.py
