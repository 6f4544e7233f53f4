#!/bin/bash
# Validators, steps, actions and guards as transient units of a real systemd (examples/programs.rs says what is tried).
# Run by hand or in CI, as root; needs what `bed` needs and a cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODE=programs-$$
cargo build -q --example programs
trap 'tests/fleet/bed down "$NODE"' EXIT
tests/fleet/bed up "$NODE"
tests/fleet/bed put "$NODE" "${CARGO_TARGET_DIR:-target}/debug/examples/programs" /root/programs
tests/fleet/bed exec "$NODE" /root/programs
