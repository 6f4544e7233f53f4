# What the suites on real machines say and count. Sourced.

PASSED=0 FAILED=0

passed() { PASSED=$((PASSED + 1)); echo "ok   $1: ${2//$'\n'/ | }"; }
failed() { FAILED=$((FAILED + 1)); echo "FAIL $1"; }

expect() { # WHAT ACTUAL EXPECTED
  if [ "$2" = "$3" ]; then passed "$1" "$2"; return; fi
  failed "$1: is ${2//$'\n'/ | }"
  echo "     must be ${3//$'\n'/ | }"
}
expect_words() { # WHAT ACTUAL WORD…
  local what=$1 actual=$2 word
  shift 2
  for word in "$@"; do
    [[ "$actual" == *"$word"* ]] || { failed "$what: no \"$word\" in: $actual"; return 0; }
  done
  passed "$what" "$actual"
}
until_true() { # WHAT SECONDS CMD…
  local what=$1 end=$((SECONDS + $2))
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || { failed "$what: not within the time"; return 1; }
    sleep 0.1
  done
}
scene() { printf '\n%s (%s s)\n' "$1" "$SECONDS"; }
# The last line of a suite; false: something failed.
tally() {
  TOLD=1
  printf "\n%s passed, %s failed, %s s%s\n" "$PASSED" "$FAILED" "$SECONDS" "${1:+, $1}"
  [ "$FAILED" = 0 ]
}
