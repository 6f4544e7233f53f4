#!/bin/bash
# Agents that update themselves, on three real machines: a canary and two others, systemd, an etcd, signed commits. Good
# programs go round one after the other; broken ones are left within their time, on the canary only; the old ones run on.
# Prints `N passed, M failed`.
#
# Run by hand or in CI, as root; needs what three.sh needs, and: cc strip.
set -euo pipefail
cd "$(dirname "$0")/../.."
TAG=cu$$
. tests/fleet/three.sh
OTHERS="app2 app3"
TRIAL_SECS=15
INSTALLED=$DIR/installed

# ---- The programs ----

# The same agent with other bytes at its end is another program with the same version; what is broken only answers
# --version and then does what its kind does.
VERSION=$("$BINARY" --version | cut -d' ' -f2)
programs() {
  local kind
  mkdir -p "$DIR/served"
  strip -o "$INSTALLED" "$BINARY"
  for kind in second third; do { cat "$INSTALLED"; echo "the $kind one"; } >"$DIR/served/$kind"; done
  for kind in crashes deaf idle; do
    cc -O1 -o "$DIR/served/$kind" -x c - <<END
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
enum { crashes, deaf, idle };
int main(int count, char **words) {
  if (count == 2 && !strcmp(words[1], "--version")) return puts("converger $VERSION") < 0;
  if ($kind == crashes) abort();
  if ($kind == deaf) signal(SIGTERM, SIG_IGN);
  for (;;) pause();
}
END
  done
  echo 'echo "converger $VERSION"' >"$DIR/served/script"
}
digest() { sha256sum "$DIR/served/$1" | cut -d' ' -f1; }
want() { # PROGRAM [DIGEST]
  cat >"$ENVIRONMENT/versions.toml" <<END
[converger]
version = "$VERSION"
sha256 = "${2:-$(digest "$1")}"
urls = ["file://$DIR/served/$1"]
END
  commit "agents: $1"
}

# ---- The repository ----

contents() {
  mkdir -p "$ENVIRONMENT" "$FLEET/roles/base"
  printf 'format = 1\nname = "app-fleet"\ndefault_environment = "production"\n' >"$FLEET/fleet.toml"
  printf 'format = 1\ndomain = "app.example.internal"\nos = "debian-12"\n[networks]\napp = "10.77.0.0/24"\n' >"$ENVIRONMENT/environment.toml"
  printf '[agents]\ncanaries = [{ nodes = ["app1"] }]\nat_a_time_percent = 10\ntrial_secs = %s\n' $TRIAL_SECS >>"$ENVIRONMENT/environment.toml"
  printf 'format = 1\n[[file]]\npath = "/etc/motd"\ntemplate = "motd"\n' >"$FLEET/roles/base/role.toml"
  echo 'hello from {{ node.name }}' >"$FLEET/roles/base/motd"
  {
    printf '[tiers]\napps = { order = 10 }\n[clusters.app]\ntier = "apps"\nroles = ["base"]\n'
    members
  } >"$ENVIRONMENT/topology.toml"
}

# ---- Nodes ----

have_reason() { local reason=$1 node; shift; for node in "$@"; do has_reason "$node" "$reason" || return 1; done; }
# The program that runs as the agent: by its name in $DIR/served, or `installed`.
runs() {
  local node pid sum name
  for node in "$@"; do
    pid=$(on "$node" systemctl show -P MainPID converger)
    sum=$(on "$node" sha256sum "/proc/$pid/exe" 2>/dev/null | cut -d' ' -f1)
    case $sum in
      "$(sha256sum "$INSTALLED" | cut -d' ' -f1)") name=installed ;;
      "") name=none ;;
      *) name=$(cd "$DIR/served" && sha256sum -- * 2>/dev/null | awk -v sum="$sum" '$1 == sum { print $2 }') ;;
    esac
    echo "${name:-unknown}"
  done | xargs
}
is_run() { local program=$1; shift; [ "$(runs "$@" | xargs -n1 | sort -u)" = "$program" ]; }
said() { on "$1" journalctl -u converger -o cat --no-pager | grep -c "$2" || true; }
when() { on "$1" journalctl -u converger -o short-unix --no-pager | awk -v what="$2" 'index($0, what) { print $1; exit }'; }
restarts() { local node; for node in "$@"; do on "$node" systemctl show -P NRestarts converger; done | xargs; }

# ---- The story ----

programs
bring_up
for node in $ALL; do on "$node" systemctl enable -q --now converger; done
wait_converged 90
expect "the installed ones run" "$(runs $ALL)" "installed installed installed"

scene "A good program goes round"
pids=$(for node in $ALL; do on "$node" systemctl show -P MainPID converger; done | xargs)
want second
wait_converged 180
expect "it runs everywhere" "$(runs $ALL)" "second second second"
expect "as the same process of the same unit" "$(for node in $ALL; do on "$node" systemctl show -P MainPID converger; done | xargs)" "$pids"
expect "nothing was restarted" "$(restarts $ALL)" "0 0 0"
expect "the reports say so" "$(for node in $ALL; do status "$node" .agent_sha256; done | uniq)" "$(digest second)"
proved=$(when app1 "completed its trial")
for node in $OTHERS; do
  expect "the canary had completed its trial when $node began" "$(awk -v a="$proved" -v b="$(when "$node" "goes on, on trial")" 'BEGIN { print (a < b) }')" "1"
done
first=$(for node in $OTHERS; do echo "$(when "$node" "goes on, on trial") $node begins"; echo "$(when "$node" "completed its trial") $node ends"; done | sort -n | cut -d' ' -f3 | xargs)
expect "one at a time" "$first" "begins ends begins ends"
expect "root's alone" "$(on app1 sh -c 'stat -c "%U %a" /var/lib/converger/agent /var/lib/converger/agent/*/converger' | xargs)" "root 700 root 755"
expect_words "status" "$(on app1 cat /run/converger/status.json | jq -c '[.agent, .agent_sha256, .proven["converger.agents"]]')" "$VERSION" "$(digest second)" "seq"

for kind in crashes deaf idle; do
  scene "A broken program: $kind"
  tried=$(said app1 "goes on, on trial")
  before=$SECONDS
  want "$kind"
  until_true "the canary says so" 180 has_reason app1 update-failed
  echo "     (after $((SECONDS - before)) s)"
  until_true "the agent before it runs" 30 is_run second app1
  expect "the agent before it runs on all" "$(runs $ALL)" "second second second"
  expect "its hold is kept" "$(held)" "converger.agents app1 failed"
  until_true "the others wait" 60 have_reason hold-failed $OTHERS || true
  expect "the others were never on trial with it" "$(for node in $OTHERS; do status "$node" .reason; done | xargs)" "hold-failed hold-failed"
  expect_words "the sentence" "$(status app1 .sentence)" "converger $VERSION"
  on app1 systemctl reload converger
  sleep 3
  expect "it is not tried again" "$(($(said app1 "goes on, on trial") - tried))" "1"
  revert
  wait_converged 90
  expect "reverted, nothing exchanged" "$(runs $ALL)" "second second second"
done

scene "What is no program, or not the one that the commit names"
want script
until_true "refused" 60 has_reason app1 update-failed
expect_words "said" "$(status app1 .sentence)" "not an ELF file"
revert
wait_converged
want third "$(digest second | tr '0-9' '1-90')"
until_true "refused" 60 has_reason app1 update-failed
expect_words "said" "$(status app1 .sentence)" "has the digest $(digest third)"
expect "no hold was taken" "$(held)" ""
revert
wait_converged

scene "The agent is killed while it is exchanged, and its watcher with it"
want third
until_true "on trial" 60 on app1 grep -q '"starts": 1' /var/lib/converger/agent/state.json
on app1 sh -c 'systemctl stop "converger-trial-*.timer"; systemctl kill -s KILL --kill-who=main converger' || true
until_true "the third one on app1" 60 is_run third app1
wait_converged 180
expect "it runs everywhere" "$(runs $ALL)" "third third third"

scene "A revert is an update to an older one, from this disk"
mv "$DIR/served/second" "$DIR/second"
revert
wait_converged 180
mv "$DIR/second" "$DIR/served/second"
expect "the second one runs, nowhere to be had and kept on the nodes" "$(runs $ALL)" "second second second"

scene "What a package manager installs runs"
{ cat "$DIR/installed"; echo packaged; } >"$DIR/served/packaged"
"$BED" put "$TAG-app2" "$DIR/served/packaged" /usr/bin/converger.new
on app2 mv /usr/bin/converger.new /usr/bin/converger
git -C "$FLEET" rm -q environments/production/versions.toml
commit "agents as they are"
wait_converged
expect "no commit wants one: all stay" "$(runs $ALL)" "second second second"
on app2 systemctl restart converger
until_true "the packaged one runs" 30 is_run packaged app2
wait_converged
expect "and nobody else's changed" "$(runs $ALL)" "second packaged second"
expect "the way back is in place" "$(on app1 systemctl is-active converger)" "active"

tally
