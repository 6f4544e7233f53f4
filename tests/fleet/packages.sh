#!/bin/bash
# Packages on a real systemd: nothing starts or restarts by them, and a package manager outlives the agent that began it
# (examples/packages.rs says what must be). Run by hand or in CI, as root; needs what `bed` needs and a cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODE=packages-$$
cargo build -q --example packages
trap 'tests/fleet/bed down "$NODE"' EXIT
tests/fleet/bed up "$NODE"
tests/fleet/bed put "$NODE" "${CARGO_TARGET_DIR:-target}/debug/examples/packages" /root/packages
tests/fleet/bed exec "$NODE" /root/packages
