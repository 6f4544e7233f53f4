# Counting. Sourced by run.

passed=0 failed=0

pass() { passed=$((passed + 1)); say "ok      $1"; }
fail() { # LABEL FILE
  failed=$((failed + 1))
  say "FAILED  $1"
  tail -n 15 "$2" | sed 's/^/        | /'
}

expect() { # LABEL COMMAND...: it succeeds
  local label=$1
  shift
  if ("$@") >"$work/out" 2>&1; then pass "$label"; else fail "$label" "$work/out"; fi
}

refuse() { # LABEL COMMAND...: it fails
  local label=$1
  shift
  if ("$@") >"$work/out" 2>&1; then fail "$label: accepted" "$work/out"; else pass "$label"; fi
}

quiet() { # COMMAND...: it succeeds and has nothing to say
  local said
  said=$(SYSTEMD_LOG_LEVEL=warning "$@" 2>&1) || { printf '%s\n' "$said"; return 1; }
  [ -z "$said" ] || { printf '%s\n' "$said"; return 1; }
}

# Asks again for a while: servers need a moment.
soon() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until ("$@"); do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.3
  done
}
