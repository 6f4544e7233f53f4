# Two commands do everything: `make demo` and `make test`. Both work on a fresh Debian 12 or Ubuntu with Rust.

SHELL := /bin/bash
.DEFAULT_GOAL := help
CACHE := $(CURDIR)/.cache
export CONVERGER_CACHE := $(CACHE)

SECONDS ?= 60

.PHONY: help setup demo test test-fleet test-platform test-etcd test-gates model crash histories sim fuzz bench lint docs bless clean

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

test-gates: setup ## Patroni, ZooKeeper and Kafka clusters for real, asked by the checks, and Kafka's voters changed by the role (root; about eight minutes, 3 GB of memory)
	tools/gate-servers
	cargo test --locked --test gates -- --include-ignored --test-threads=1

test-fleet: setup ## Units, packages, programs of roles, an enrolment, a fleet of three with etcd, changes that take nodes away, singletons, and agents that update themselves, on real systemd machines (root; debootstrap, systemd-container)
	tests/fleet/units.sh
	tests/fleet/programs.sh
	tests/fleet/packages.sh
	tests/fleet/enroll.sh
	@tools/etcd >/dev/null
	tests/fleet/node.sh
	tests/fleet/risk.sh
	tests/fleet/singleton.sh
	tests/fleet/update.sh

test-etcd: ## Three etcd members in networks of their own, and everything that can happen to them, for longer (root; about 15 minutes)
	@tools/setup test
	CONVERGER_ETCD_SECS=4 CONVERGER_ETCD_ROUNDS=8 cargo test --locked --test etcd_three -- --nocapture
	CONVERGER_ROLLS=20 cargo test --locked --test etcd_latency -- --nocapture

crash: setup ## Kill, fail and unplug an agent at every effect of an apply (root; about 45 minutes)
	@tools/setup test
	CONVERGER_CRASH_EVERY=1 CONVERGER_CRASH_KILLS=400 cargo test --locked --test crash -- --nocapture
	CONVERGER_FAULT_EVERY=1 CONVERGER_FAULT_ERRORS=2 cargo test --locked --test faults -- --nocapture
	CONVERGER_POWER_EVERY=3 cargo test --locked --test power_cut -- --nocapture
	CONVERGER_FILES=100000 cargo test --locked --release --test many_files -- --nocapture

model: setup ## Every state of small fleets under the hold protocol, and every weakened rule (some minutes, 2 GiB; ONLY="own store": one of them)
	@mkdir -p target
	@cargo rustc --locked --quiet --test model --profile test -- -C opt-level=3 --emit=link=target/model-checker
	CONVERGER_MODEL=all $(if $(ONLY),CONVERGER_MODEL_ONLY="$(ONLY)") target/model-checker --nocapture --test-threads=1

histories: setup ## 100,000 random histories, judged by two verifiers (HISTORIES=n), and the tally of their reasons
	CONVERGER_HISTORIES=$${HISTORIES:-100000} cargo test --locked --release --test histories -- --nocapture

sim: setup ## Whole fleets, simulated: SEEDS=n small ones (5,000), some of the template's 65 nodes, two of 1,000
	CONVERGER_SIM_SEEDS=$${SEEDS:-5000} CONVERGER_SIM_TEMPLATES=50 CONVERGER_SIM_GENERATED=2 CONVERGER_SIM_NODES=1000 \
		cargo test --locked --release --test sim -- --nocapture

fuzz: setup ## Every parser of foreign bytes under libFuzzer, SECONDS=60 each; installs cargo-fuzz if it is missing
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing, installing it"; cargo install --locked cargo-fuzz; }
	@cd fuzz && export RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=detect_odr_violation=0 && for target in $$(ls seeds); do \
		echo "== $$target"; mkdir -p corpus/$$target; \
		cargo fuzz run $$target corpus/$$target seeds/$$target -- -max_total_time=$(SECONDS) -print_final_stats=1 || exit 1; \
	done

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
