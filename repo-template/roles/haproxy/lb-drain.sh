#!/bin/bash
# Moves the virtual addresses away from this node (on), or lets it hold them again (off).
#
# keepalived's check sees the mark and lowers this node's priority. Where there is nobody to take over, the addresses
# stay and the restart goes on after ten seconds: waiting longer would not help.
set -euo pipefail

mark=/run/datalyptica/lb-drain
addresses=({% if vips.external is defined %}{{ vips.external }} {% endif %}{{ vips.internal }})

holds_any() {
  local have address
  have=" $(ip -4 -o addr show | awk '{ sub("/.*", "", $4); print $4 }' | tr '\n' ' ')"
  for address in "${addresses[@]}"; do
    [[ $have != *" $address "* ]] || return 0
  done
  return 1
}

case ${1-} in
on)
  mkdir -p "${mark%/*}"
  : >"$mark"
  for _ in {1..20}; do
    holds_any || exit 0
    sleep 0.5
  done
  echo "still holds one of ${addresses[*]}" >&2
  ;;
off)
  rm -f "$mark"
  ;;
*)
  echo "usage: lb-drain on|off" >&2
  exit 2
  ;;
esac
