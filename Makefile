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

test-fleet: setup ## Units, and a fleet of three with etcd, on real systemd machines (root; debootstrap, systemd-container)
	tests/fleet/units.sh
	@tools/etcd >/dev/null
	tests/fleet/node.sh

bench: setup ## Measure, and write docs/performance.md (BENCH=--short: each thing once, nothing written)
	cargo bench --locked --bench budgets -- $(BENCH)

lint: ## Format and clippy
	cargo fmt --all --check
	cargo clippy --all-targets --locked -- -D warnings

docs: ## The manual as HTML in book/ (tests/docs.rs checks it without mdbook)
	@command -v mdbook >/dev/null || { echo "mdbook is missing: cargo install --locked mdbook (some minutes)"; exit 2; }
	mdbook build docs

bless: ## Write the generated pages, schemas and expected outputs anew
	CONVERGER_BLESS=1 cargo test --locked --test docs --test schemas --test fleet --test texts

clean: ## Remove the sandbox and the caches (not the build)
	rm -rf target/demo target/rendered $(CACHE)
