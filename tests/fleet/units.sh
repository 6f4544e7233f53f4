#!/bin/bash
# Unit control against a real systemd: starts, stops, failures, masks, time limits (examples/units.rs says which).
# Run by hand or in CI, as root; needs what `bed` needs and a cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODE=units-$$
cargo build -q --example units
trap 'tests/fleet/bed down "$NODE"' EXIT
tests/fleet/bed up "$NODE"
tests/fleet/bed put "$NODE" "${CARGO_TARGET_DIR:-target}/debug/examples/units" /root/units
tests/fleet/bed exec "$NODE" /root/units
