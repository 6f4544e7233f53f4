#!/bin/bash
# Changes that can take a whole node away, on three real machines: a firewall that cuts the node off, an sshd that lets
# nobody in, an agent that is killed and a machine that reboots before it is confirmed, and reboots that a role asks for.
#
# Run by hand or in CI, as root; the machines, the store and the repository are those of node.sh, and it needs the same.
# Never: an address outside its own network namespace.
set -euo pipefail
. "$(dirname "$0")/node.sh"

BASE=$FLEET/roles/base
rules() { printf '#!/usr/sbin/nft -f\nflush ruleset\ntable inet fleet {\n  chain %s {\n    type filter hook %s priority 0; policy %s;\n  }\n}\n' "$1" "$1" "$2" >"$BASE/nftables.conf"; }
sshd() { printf '# %s\n%s\n' "$1" "$2" >"$BASE/sshd.conf"; }
agent_of() { holds | cut -d" " -f1 | sed -n 1p; }
others_of() { echo "$ALL" | xargs -n1 | grep -v "$1"; }
all_have() { local node; for node in $2; do on "$node" grep -q "$3" "$1" || return 1; done; }
# How often the bad rules were put back: each time a copy of them stays.
tried() { on "$1" sh -c 'grep -l "policy drop" /var/lib/converger/backups/etc/nftables.conf/* | wc -l'; }
one_failed() { holds | grep -q failed; }
others_wait() { local node; for node in $(others_of "$1"); do has_reason "$node" hold-failed || return 1; done; }
# Nobody looked at what it did: it is tried once more, by whoever comes first, and that one finds out.
once_more() {
  until_true "it is tried once more" 300 one_failed
  sick=$(holds | sed -n 's/ failed$//p')
  until_true "it is refused" 60 has_reason "$sick" rolled-back
  expect_words "what it says" "$(status "$sick" .sentence)" "put back: not reached any more"
}
boot_ids() { local node; for node in $ALL; do on "$node" cat /proc/sys/kernel/random/boot_id 2>/dev/null || return 1; done; }
has_bad() { local node; for node in $ALL; do ! on "$node" grep -q "$2" "$1" 2>/dev/null || { echo "$node"; return 0; }; done; return 1; }
no_agent() { [ "$(on "$1" systemctl is-active converger || true)" = active ] || echo gone; }
reaches_store() { on "$1" timeout 2 bash -c 'exec 3<>/dev/tcp/10.77.0.1/2379' 2>/dev/null; }
ssh_answers() { ip netns exec "$TAG" timeout 2 bash -c "exec 3<>/dev/tcp/$(address "$1")/22 && read -r line <&3 && [[ \$line == SSH-2.0* ]]" 2>/dev/null; }

scene "Bootstrap, without holds and with nothing to lose"
for node in $ALL; do on "$node" systemctl enable -q --now converger & done
wait $(jobs -p | grep -vx "$ETCD_PID")
wait_converged 90

scene "A good firewall and a good sshd are confirmed"
rules output accept
sshd first 'PermitRootLogin no'
cat >>"$BASE/role.toml" <<END

[[file]]
path = "/etc/nftables.conf"
source = "nftables.conf"
mode = "0755"
restarts = ["nftables.service"]
[[unit]]
name = "nftables.service"
enabled = true
state = "running"
[[file]]
path = "/etc/ssh/sshd_config.d/fleet.conf"
source = "sshd.conf"
reloads = ["ssh.service"]
[[unit]]
name = "ssh.service"
enabled = true
state = "running"
END
commit "a firewall and an sshd"
wait_converged 240
expect "they are there" "$(for node in $ALL; do on "$node" sh -c 'nft list ruleset | grep -c "hook output"; systemctl is-active ssh'; done | sort | uniq | xargs)" "1 active"
expect "under holds of the whole node" "$(for node in $ALL; do on "$node" journalctl -u converger -o cat | grep -c 'hold app.members: claimed, asked, armed' || true; done | xargs)" "2 2 2"
expect "confirmed" "$(for node in $ALL; do on "$node" journalctl -u converger -o cat | grep -c 'confirmed: still reached' || true; done | xargs)" "2 2 2"
expect "nothing is left of it" "$(for node in $ALL; do on "$node" sh -c 'ls -A /var/lib/converger/confirm 2>/dev/null; systemctl list-units --all --plain --no-legend "converger-unconfirmed.timer"'; done | xargs)" ""
for node in $ALL; do ssh_answers "$node" || failed "sshd of $node does not answer"; done
sshd second 'PermitRootLogin prohibit-password'
commit "sshd again"
wait_converged 120
expect "a second change of sshd goes through" "$(for node in $ALL; do on "$node" head -1 /etc/ssh/sshd_config.d/fleet.conf; done | uniq)" "# second"

# H6, D18
scene "A firewall that cuts the node off"
rules output drop
commit "nobody gets out"
until_true "one fails" 180 one_failed
sick=$(agent_of)
until_true "it says why" 30 has_reason "$sick" rolled-back
expect_words "its error" "$(status "$sick" .sentence)" "nftables.service put back" "not reached any more" "the store" "of app.members"
expect "the old rules are back" "$(on "$sick" sh -c 'grep -c "policy accept" /etc/nftables.conf; nft list ruleset | grep -c "policy accept"' | xargs)" "1 1"
reaches_store "$sick" && expect "it reaches the store" "yes" "yes"
until_true "the others wait" 60 others_wait "$sick" && expect "the others wait" "$(for node in $(others_of "$sick"); do status "$node" .reason; done | xargs)" "hold-failed hold-failed"
sleep 12
expect "its hold stays, and it is not tried again" "$(holds), $(tried "$sick")" "$sick failed, 1"
expect "nobody else took it" "$(for node in $ALL; do on "$node" grep -c 'policy accept' /etc/nftables.conf; done | xargs)" "1 1 1"
revert
wait_converged 90
expect "a revert brings all back" "$(holds)" ""

# D18, E16
scene "An sshd that lets nobody in"
sshd third 'ListenAddress 127.0.0.1'
commit "nobody gets in"
until_true "one fails" 180 one_failed
sick=$(agent_of)
until_true "it says why" 30 has_reason "$sick" rolled-back
expect_words "its error" "$(status "$sick" .sentence)" "ssh.service put back" "sshd at $(address "$sick")"
until_true "sshd answers" 20 ssh_answers "$sick" && expect "sshd of all" "$(for node in $ALL; do ssh_answers "$node" && echo yes; done | xargs)" "yes yes yes"
expect "the old file is back" "$(on "$sick" head -1 /etc/ssh/sshd_config.d/fleet.conf)" "# second"
revert
wait_converged 90

scene "The agent is killed before it is confirmed: a timer puts back"
rules output drop
commit "nobody gets out, and nobody is there"
until_true "one takes it" 90 has_bad /etc/nftables.conf 'policy drop' >"$DIR/sick"
sick=$(tail -1 "$DIR/sick")
on "$sick" sh -c 'systemctl kill -s KILL --kill-who=main converger; systemctl stop converger'
expect "cut off, and without an agent" "$(no_agent "$sick"), $(reaches_store "$sick" && echo reached || echo cut)" "gone, cut"
until_true "the timer puts back" 200 on "$sick" grep -q 'policy accept' /etc/nftables.conf
until_true "the old rules are in force" 30 reaches_store "$sick"
expect "without an agent" "$(no_agent "$sick")" "gone"
on "$sick" systemctl start converger
once_more
expect "nobody else has it" "$(for node in $ALL; do on "$node" grep -c 'policy accept' /etc/nftables.conf; done | xargs)" "1 1 1"
revert
wait_converged 120

scene "The machine reboots before it is confirmed: the boot puts back"
before=$(boot_ids)
rules output drop
commit "nobody gets out, and the power goes"
until_true "one takes it" 90 has_bad /etc/nftables.conf 'policy drop' >"$DIR/sick"
sick=$(tail -1 "$DIR/sick")
# Without an agent at the boot: it would try once more before anybody can look.
on "$sick" sh -c 'systemctl kill -s KILL --kill-who=main converger; systemctl disable -q converger; sync; systemctl reboot --force --force' || true
until_true "it is up again" 90 on "$sick" sh -c 'systemctl is-system-running | grep -qE "running|degraded"' 2>/dev/null
expect "another boot" "$([ "$(boot_ids)" != "$before" ] && echo yes)" "yes"
expect "before the network came up" "$(on "$sick" sh -c 'grep -c "policy accept" /etc/nftables.conf; nft list ruleset | grep -c "policy accept"; systemctl show -P ConditionResult converger-roll-back' | xargs)" "1 1 yes"
on "$sick" systemctl enable -q --now converger
once_more
revert
wait_converged 120

# G26, G38
scene "A change that needs a reboot"
before=$(boot_ids)
watch_members
printf 'quiet\n' >"$BASE/kernel.conf"
printf '\n[[file]]\npath = "/etc/fleet-kernel.conf"\nsource = "kernel.conf"\nreboot = true\n' >>"$BASE/role.toml"
commit "kernel arguments"
wait_converged 400
expect "every machine booted anew" "$(paste <(echo "$before") <(boot_ids) | awk '$1 != $2' | wc -l)" "3"
expect "once" "$(for node in $ALL; do on "$node" journalctl -u converger -o cat --no-pager | grep -c 'reboot for' || true; done | xargs)" "1 1 1"
expect "most members away at one moment, seen from outside" "$(cat "$DIR/most-away")" "1"
before=$(boot_ids)
sleep 15
expect "and not again" "$([ "$(boot_ids)" = "$before" ] && echo yes), $(for node in $ALL; do status "$node" .state; done | uniq)" "yes, converged"
kill "$WATCHER" && wait "$WATCHER" 2>/dev/null || true

tally
