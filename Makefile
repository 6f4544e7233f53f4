# Two commands do everything: `make demo` and `make test`. Both work on a fresh Debian 12 or Ubuntu with Rust.

SHELL := /bin/bash
.DEFAULT_GOAL := help
CACHE := $(CURDIR)/.cache
export CONVERGER_CACHE := $(CACHE)

.PHONY: help setup demo test test-fleet test-platform bench lint docs bless clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: ## Install what a build needs (Rust itself is yours to install)
	@tools/setup build

demo: setup ## Build, then watch a merge roll through 65 nodes in a sandbox
	@echo "building (the first time takes a few minutes)"
	@cargo build --release --locked --quiet
	@target/release/converger demo --dir target/demo

test: ## Install what the tests need, and run them all
	@tools/setup test
	cargo test --locked

test-platform: setup ## The real servers' own checks on every rendered file
	@cargo build --locked --quiet
	@rm -rf target/rendered && target/debug/converger --repo repo-template render --all --out target/rendered
	tests/platform/run target/rendered

test-fleet: setup ## Units on a real systemd, in a machine of its own (root; debootstrap)
	tests/fleet/units.sh

bench: setup ## Measure, and write docs/src/performance.md
	cargo build --release --locked --quiet
	cargo bench --locked --bench budgets

lint: ## Format, clippy, docs
	cargo fmt --all --check
	cargo clippy --all-targets --locked -- -D warnings

docs: ## The manual as HTML in book/
	@tools/setup docs
	mdbook build docs

bless: ## Write the generated pages, schemas and expected outputs anew
	CONVERGER_BLESS=1 cargo test --locked --test docs --test schemas --test fleet

clean: ## Remove the sandbox and the caches (not the build)
	rm -rf target/demo target/rendered $(CACHE)
