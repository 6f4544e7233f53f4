#!/bin/bash
# A unit of which one may run in the whole fleet, on three real machines: agents that are killed and frozen, a holder that
# is cut off from etcd, an etcd that is away, a clock that is set, a move by a commit, a machine that reboots and one that
# loses its power. Every instance notes when it began and ended by the clock that all machines of a bed share; what they
# noted, and what is seen from outside all the time, must never show two.
#
# Run by hand or in CI, as root; the machines, the store and the repository are those of node.sh, and it needs the same.
# Never: an address outside its own network namespace.
set -euo pipefail
. "$(dirname "$0")/node.sh"

# A lease of 15 s: it runs for 10 s without a word, and is taken 20 s after the last word. The rest is for a slow machine.
TAKEN_WITHIN=90
ROLE=$FLEET/roles/beat

# Counts instances from outside: each listens on its own machine, all the time.
watch_beats() {
  ip netns exec "$TAG" bash -c '
    most=0
    while :; do
      up=0
      for n in 1 2 3; do (exec 3<>/dev/tcp/10.77.0.1$n/7070) 2>/dev/null && up=$((up + 1)); done
      [ $up -le $most ] || { most=$up; echo $most >"$0"; }
      sleep 0.05
    done' "$DIR/most-beats" &
  WATCHER=$!
  BESIDES+=($!)
}
runs() { [ "$(on "$1" timeout 20 systemctl is-active beat 2>/dev/null || true)" = active ]; }
runner() { local node; for node in ${1:-$ALL}; do runs "$node" && { echo "$node"; return 0; }; done; return 1; }
somebody_runs() { runner "${1:-$ALL}" >/dev/null; }
nobody_runs() { ! somebody_runs "${1:-$ALL}"; }
others() { echo "$ALL" | xargs -n1 | grep -v "^$1\$" | xargs; }
# Every line: from until node. What has no end runs, or was killed with its machine: its last sign of life counts.
beats() { local node; for node in $ALL; do cat "$DIR/beats-$node" 2>/dev/null || true; on "$node" cat /var/lib/beat/events 2>/dev/null | grep -v '^$' | sed "s/\$/ $node/" || true; done; }
# Signs of life of two machines that lie between each other's: `0` is what must be.
overlaps_of_beats() {
  beats | sort -u | awk '{ key = $3 " " $1; from[key] = $1; if ($2 > until[key]) until[key] = $2; node[key] = $3 }
    END { for (k in from) print from[k], until[k], node[k] }' | sort -n |
    awk '$1 < until && $3 != node { n++ } $2 > until { until = $2; node = $3 } END { print n + 0 }'
}
never_two() { expect "$1: most at one moment, seen from outside and by their own notes" "$(cat "$DIR/most-beats"), $(overlaps_of_beats)" "1, 0"; }
agent_pid() { on "$1" systemctl show -P MainPID converger; }
grant_of() { store get "$PREFIX/single/app/beat.service" --print-value-only | jq -r .node; }

scene "Bootstrap with a singleton"
mkdir -p "$ROLE"
cat >"$ROLE/beat" <<'END'
#!/usr/bin/perl
# Listens, and notes twenty times a second that it lives: `BEGAN NOW`, in the time since boot of the real machine. It takes
# two seconds to stop.
use strict;
use warnings;
use IO::Socket::INET;
sub uptime { open(my $file, '<', '/proc/uptime') or die "uptime: $!\n"; return (split ' ', <$file>)[0] }
my $stop = 0;
$SIG{TERM} = sub { $stop ||= uptime() };
my $began = uptime();
my $server = IO::Socket::INET->new(LocalPort => 7070, Listen => 50, ReuseAddr => 1) or die "port 7070: $!\n";
mkdir '/var/lib/beat';
open(my $events, '>>', '/var/lib/beat/events') or die "cannot write events: $!\n";
$events->autoflush(1);
while (1) {
    my $now = uptime();
    print $events "$began $now\n";
    last if $stop and $now > $stop + 2;
    select undef, undef, undef, 0.05;
}
END
cat >"$ROLE/beat.service" <<'END'
[Unit]
Description={{ vars.description }}
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/lib/beat
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
END
cat >"$ROLE/role.toml" <<'END'
# One beat for the whole cluster.
format = 1
[[file]]
path = "/usr/local/lib/beat"
source = "beat"
mode = "0755"
restarts = ["beat.service"]
[[unit]]
name = "beat.service"
template = "beat.service"
state = "running"
singleton = true
lease_secs = 15
stop_secs_max = 4
END
sed -i 's/^roles = \["app"\]/roles = ["app", "beat"]/' "$ENVIRONMENT/topology.toml"
commit "a singleton"
(cd "$FLEET" && "$BINARY" check --quiet)
echo 0 >"$DIR/most-beats"
watch_beats
for node in $ALL; do on "$node" systemctl enable -q --now converger & done
wait $(jobs -p | grep -vxE "$ETCD_PID|$WATCHER")
wait_converged 90
until_true "one candidate takes it" $TAKEN_WITHIN somebody_runs
first=$(runner)
expect "the store says so" "$(grant_of)" "$first"
wait_converged
expect "standbys are converged" "$(for node in $ALL; do status "$node" .state; done | xargs)" "converged converged converged"
expect "no boot starts it" "$(for node in $ALL; do on "$node" systemctl is-enabled beat || true; done | xargs)" "disabled disabled disabled"
for node in $(others "$first"); do
  on "$node" systemctl start beat || true
  expect "$node: nobody starts it by hand" "$(on "$node" systemctl is-active beat || true)" "inactive"
done
sleep 20
expect "it stays where it is" "$(runner)" "$first"
never_two "so far"

scene "The agent of the holder is restarted, and killed for good"
on "$first" systemctl restart converger
sleep 15
expect "a restart of the agent moves nothing" "$(runner), $(on "$first" systemctl show -P NRestarts beat)" "$first, 0"
on "$first" sh -c 'mkdir -p /run/systemd/system/converger.service.d
  printf "[Service]\nRestart=no\n" >/run/systemd/system/converger.service.d/dead.conf'
on "$first" systemctl daemon-reload
on "$first" systemctl kill -s KILL converger
until_true "systemd stops it without the agent" $TAKEN_WITHIN nobody_runs "$first"
until_true "another takes it" $TAKEN_WITHIN somebody_runs "$(others "$first")"
second=$(runner)
never_two "after the agent's death"
on "$first" rm /run/systemd/system/converger.service.d/dead.conf
on "$first" systemctl daemon-reload
on "$first" systemctl start converger
wait_converged
expect "who comes back does not take it back" "$(runner)" "$second"

scene "The agent of the holder is frozen, and goes on"
frozen=$(agent_pid "$second")
on "$second" sh -c "kill -STOP $frozen"
until_true "systemd stops it" $TAKEN_WITHIN nobody_runs "$second"
until_true "another takes it" $TAKEN_WITHIN somebody_runs "$(others "$second")"
third=$(runner)
on "$second" sh -c "kill -CONT $frozen"
sleep 10
expect "the one that was frozen leaves it alone" "$(runner)" "$third"
never_two "after a freeze"
wait_converged

scene "The holder is cut off from etcd"
on "$third" nft -f - <<'END'
table inet cut { chain output { type filter hook output priority 0; ip daddr 10.77.0.1 tcp dport 2379 drop; }; }
END
until_true "it stops by itself" $TAKEN_WITHIN nobody_runs "$third"
until_true "another takes it" $TAKEN_WITHIN somebody_runs "$(others "$third")"
fourth=$(runner)
on "$third" nft delete table inet cut
never_two "after a partition"
wait_converged

scene "etcd is away and comes back"
stop_etcd
until_true "nobody runs it without a store" $TAKEN_WITHIN nobody_runs
start_etcd
until_true "it runs again" $TAKEN_WITHIN somebody_runs
expect "where it ran last: nobody else can have had it" "$(runner)" "$fourth"
never_two "after a loss of etcd"
wait_converged

scene "A new version of the singleton, and a move by a commit"
set_variable description "another beat"
commit "another beat"
wait_converged
expect "it was restarted in place" "$(runner), $(on "$fourth" systemctl show -P Description beat)" "$fourth, another beat"
for node in $(others "$fourth"); do
  sed -i "s/^\[nodes.$node\]/&\nlabels = { beat = true }/" "$ENVIRONMENT/topology.toml"
done
sed -i 's/^lease_secs = 15/&\nonly = { label = "beat" }/; s/^restarts.*/&\nonly = { label = "beat" }/' "$ROLE/role.toml"
(cd "$FLEET" && "$BINARY" check --quiet)
commit "elsewhere"
until_true "it moves" 60 somebody_runs "$(others "$fourth")"
fifth=$(runner)
never_two "after a planned move"
wait_converged 90
expect "where it left, its guards left too" \
  "$(on "$fourth" sh -c 'ls /run/converger/single; systemctl list-timers --all "converger-single-*" --no-legend | wc -l')" "0"

scene "The machine of the holder reboots"
"$BED" reboot "$TAG-$fifth"
until_true "another has it" 60 somebody_runs
sixth=$(runner)
expect "it was handed over: who goes down frees it" "$(on "$sixth" journalctl -u converger -o cat | grep -c 'has the singleton' | awk '{ print ($1 > 0) }')" "1"
never_two "after a reboot"
wait_converged 90

scene "The holder loses its power"
last=$(runner)
on "$last" cat /var/lib/beat/events | sed "s/\$/ $last/" >"$DIR/beats-$last"
"$BED" down "$TAG-$last"
until_true "another takes it" $TAKEN_WITHIN somebody_runs "$(others "$last")"
never_two "in the end"

kill "$WATCHER" && wait "$WATCHER" 2>/dev/null || true
tally
