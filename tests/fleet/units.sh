#!/bin/bash
# Units and what else systemd's tools act on, against a real systemd: examples/units.rs has the matrix of unit control;
# then examples/apply.rs brings the machine to what a directory says, is killed in between, and must find out by looking.
#
#   units.sh [SUITE]     SUITE: as for bed, `jammy` for systemd 249
#
# Run by hand or in CI, as root; needs what `bed` needs and a cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
export BED_SUITE=${1:-${BED_SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}}
NODE=units-$$
BED=tests/fleet/bed
EXAMPLES=${CARGO_TARGET_DIR:-target}/debug/examples
. tests/fleet/expect.sh
cargo build -q --locked --example units --example apply

on() { "$BED" exec "$NODE" "$@"; }
sh_on() { on sh -c "$1"; }

# What the machine must look like: a directory in it. `want PATH` takes the content of a file from its input.
want() { sh_on "mkdir -p '/root/want/files$(dirname "$1")' && cat >'/root/want/files$1'"; }
says() { sh_on "cat >/root/want/$1"; }
drop() { sh_on "rm -rf $(printf "'/root/want/files%s' " "$@")"; }
# Prints what was done; `failed` and `deferred` lines tell what was not.
apply() { on /root/apply /root/want "$@" 2>&1 || true; }
steps() { apply "$@" | sed 's/: stopped .*//; s/: [0-9.]* s$//'; }
# Killed before or after a step.
dies() { on /root/apply /root/want "$@" >/dev/null 2>&1 && echo "it lives" || true; }

trap 'trap "" INT TERM; "$BED" down "$NODE"' EXIT
trap 'exit 130' INT TERM
"$BED" up "$NODE"
for example in units apply; do "$BED" put "$NODE" "$EXAMPLES/$example" "/root/$example"; done
expect_words "systemd" "$(on systemctl --version | head -1)" systemd
if [ -z "${ONLY_APPLY:-}" ]; then on /root/units || FAILED=$((FAILED + 1)); fi

# ---- A service that writes down each start of it, and what it started with ----

own_unit() { printf '[Service]\nEnvironment=UNIT=%s\nExecStart=/usr/local/lib/own own\nExecStop=/bin/sh -c "ls /etc/systemd/system/own.service >>/var/log/stops"\n[Install]\nWantedBy=multi-user.target\n' "$1"; }
on mkdir -p /root/want /usr/local/lib
sh_on 'cat >/usr/local/lib/own; chmod 755 /usr/local/lib/own' <<'END'
#!/bin/sh
echo "$UNIT$(cat /etc/$1.conf 2>/dev/null)" >>/var/log/$1
exec sleep infinity
END
starts() { sh_on "cat /var/log/${1:-own} 2>/dev/null | xargs"; }
conf() { echo "$1" | want /etc/own.conf; }
reloads() { sh_on "journalctl _PID=1 -o cat --no-pager | grep -c '^Reloading\.' || true"; }

scene "Restarts are found out by looking"
own_unit 1 | want /etc/systemd/system/own.service
conf a
echo '/etc/own.conf own.service' | says restarts
echo 'own.service running enabled' | says units
before=$(reloads)
expect "first" "$(steps)" "+ /etc/own.conf
+ /etc/systemd/system/own.service
enable own.service
start own.service"
expect "one daemon-reload for all of it" "$(($(reloads) - before))" "1"
expect "enabled" "$(on systemctl is-enabled own)" "enabled"
expect "nothing more" "$(apply)" ""
conf b
expect "a change" "$(steps)" "~ /etc/own.conf
restart own.service"
on systemctl restart own
expect "restarted by hand: nothing to do" "$(apply), $(starts)" ", 1a 1b 1b"

conf c
dies before "swap"
expect "killed before the exchange, which leaves it stopped" "$(on systemctl is-active own || true)" "inactive"
apply >/dev/null
expect "one start" "$(starts)" "1a 1b 1b 1c"
conf d
dies before "start own"
on systemctl start own
expect "killed after it, and started by hand" "$(apply), $(starts)" ", 1a 1b 1b 1c 1d"
own_unit 2 | want /etc/systemd/system/own.service
dies after swap
sh_on 'systemctl restart own 2>/dev/null'
expect "killed before the daemon-reload, and started by hand with the old unit" "$(starts)" "1a 1b 1b 1c 1d 1d"
apply >/dev/null
expect "started once more" "$(starts), $(on systemctl show -P NeedDaemonReload own)" "1a 1b 1b 1c 1d 1d 2d, no"
conf e
dies before "start own"
on truncate -s 0 /var/log/own
"$BED" reboot "$NODE"
expect "killed, then a reboot, which starts it" "$(apply), $(starts)" ", 2e"
expect "and once more nothing" "$(apply), $(starts)" ", 2e"

conf f
sh_on 'echo $$ >/root/loop; while [ -e /root/loop ]; do systemctl start own; done' 2>/dev/null & loop=$!
apply >/dev/null
on rm /root/loop
wait "$loop" || true
sh_on 'systemctl reset-failed own'
expect "somebody starts it all the time: it ends with the new file" "$(starts | awk '{ print $NF }'), $(apply)" "2f, "
sh_on 'sed -i s/UNIT=2/UNIT=9/ /etc/systemd/system/own.service'
on truncate -s 0 /var/log/own
apply >/dev/null
expect "its unit file edited, without a daemon-reload: put back" "$(starts), $(on systemctl show -P NeedDaemonReload own)" ", no"
sh_on 'sed -i s/UNIT=2/UNIT=9/ /etc/systemd/system/own.service; systemctl daemon-reload; systemctl restart own'
apply >/dev/null
expect "edited and restarted with it: put back, and restarted" "$(starts)" "9f 2f"
sh_on 'mkdir -p /etc/systemd/system/own.service.d; printf "[Service]\nNice=1\n" >/etc/systemd/system/own.service.d/admin.conf; systemctl daemon-reload'
expect "a drop-in of an administrator is named, and stays" "$(apply)" "audit /etc/systemd/system/own.service.d/admin.conf"
sh_on 'rm -r /etc/systemd/system/own.service.d; systemctl daemon-reload'

scene "A bad unit file replaces nothing"
pid=$(on systemctl show -P MainPID own)
printf '[Service]\nExecStart=/no/such/program\nExecStrat=/bin/x\n' | want /etc/systemd/system/own.service
expect_words "refused" "$(apply)" "failed own.service: apply-failed /etc/systemd/system/own.service: the candidate was refused by \`systemd-analyze verify\`" \
  "/etc/systemd/system/own.service:3: Unknown key" "Command /no/such/program is not executable"
own_unit 2 | want /etc/systemd/system/own.service
printf '[Service]\nExecStart=/bin/true\n' | want /etc/systemd/system/own.service.d/50-converger.conf
expect_words "a bad drop-in" "$(apply)" "/etc/systemd/system/own.service.d/50-converger.conf: the candidate was refused" "more than one ExecStart="
drop /etc/systemd/system/own.service.d
expect "the running one was left alone" "$(on systemctl show -P MainPID own), $(sh_on 'ls /run/converger/verify 2>&1 | grep -c No'), $(apply)" "$pid, 1, "
printf '[Service]\nExecStart=/usr/local/lib/later\n' | want /etc/systemd/system/later.service
printf '#!/bin/sh\nexec sleep infinity\n' | want /usr/local/lib/later
on chmod 755 /root/want/files/usr/local/lib/later
printf '/usr/local/lib/later later.service\n/etc/own.conf own.service\n' | says restarts
printf 'own.service running enabled\nlater.service running\n' | says units
expect_words "a program that comes with it is not missed " "$(apply)" "+ /usr/local/lib/later"

scene "What systemd stops along"
drop /etc/systemd/system/later.service /usr/local/lib/later
unit() { printf '[Unit]\n%s\n[Service]\nExecStart=/usr/local/lib/own %s\n' "$2" "$1" | sh_on "cat >/etc/systemd/system/$1.service"; }
unit pool 'Requires=own.service
After=own.service'
unit site 'BindsTo=pool.service
After=pool.service'
unit part 'PartOf=own.service'
unit idle 'Requires=own.service'
echo 'own.service running enabled' | says units
apply >/dev/null
sh_on 'systemctl daemon-reload; systemctl start site part'
conf g
expect "under its own name only" "$(steps)" "~ /etc/own.conf
restart own.service
start part.service, which was stopped along
start pool.service, which was stopped along
start site.service, which was stopped along"
active() { on systemctl is-active own pool site part idle || true; }
expect "all that ran runs" "$(active | xargs)" "active active active active inactive"
expect "nothing twice" "$(for unit in pool site part; do sh_on "wc -l </var/log/$unit"; done | xargs), $(apply)" "2 2 2, "
conf h
dies after "stop own"
expect "killed when all are down" "$(active | xargs)" "inactive inactive inactive inactive inactive"
apply >/dev/null
expect "nothing is forgotten" "$(active | xargs), $(apply)" "active active active active inactive, "
# The site is a member of a group; another member has its hold.
printf '[Unit]\nBindsTo=pool.service\nAfter=pool.service\n[Service]\nExecStart=/usr/local/lib/own site\n' | want /etc/systemd/system/site.service
printf 'own.service running enabled\nsite.service running\n' | says units
echo site.service | says groups
apply >/dev/null
sites=$(sh_on 'wc -l </var/log/site')
on touch /root/want/held
conf i
expect_words "it waits for the hold of what it would stop along" "$(apply)" "deferred own.service"
expect "nothing was stopped" "$(sh_on 'wc -l </var/log/site'), $(starts | awk '{ print $NF }')" "$sites, 2h"
on rm /root/want/held
expect_words "inside the hold" "$(apply)" "hold site.members: claimed, asked, armed" "restart own.service" "start site.service, which was stopped along"
expect "once" "$(($(sh_on 'wc -l </var/log/site') - sites)), $(active | xargs), $(apply)" "1, active active active active inactive, "
unit rival ''
sh_on 'systemctl daemon-reload; systemctl start rival'
printf '[Unit]\nConflicts=site.service\n[Service]\nExecStart=/usr/local/lib/own rival\n' | want /etc/systemd/system/rival.service
printf 'own.service running enabled\nsite.service running\nrival.service running\n' | says units
on touch /root/want/held
expect_words "a conflict that only the new unit file has" "$(apply)" "deferred rival.service"
expect "stops nobody" "$(active | xargs)" "active active active active inactive"
on rm /root/want/held
drop /etc/systemd/system/rival.service
printf 'own.service running enabled\nsite.service running\n' | says units
sh_on 'systemctl stop rival; rm -f /etc/systemd/system/rival.service; systemctl daemon-reload'
apply >/dev/null

scene "A unit that leaves"
on truncate -s 0 /var/log/stops
before=$(reloads)
echo 'site.service running' | says units
drop /etc/systemd/system/own.service /etc/own.conf
: | says restarts
apply >/dev/null
expect "it was stopped with its file there" "$(on cat /var/log/stops)" "/etc/systemd/system/own.service"
expect "file and link are gone, and systemd knows" \
  "$(sh_on 'ls /etc/systemd/system/own.service /etc/systemd/system/multi-user.target.wants/own.service 2>&1 | grep -c "No such"'), $(on systemctl show -P LoadState own), $(($(reloads) - before))" "2, not-found, 1"
drop /etc/systemd/system/site.service
: | says units
: | says groups
sh_on 'systemctl stop pool site part; rm /etc/systemd/system/pool.service /etc/systemd/system/part.service /etc/systemd/system/idle.service'
apply >/dev/null
expect "empty" "$(apply)" ""

scene "Owners' tools"
echo 'net.ipv4.ip_default_ttl = 63' | want /etc/sysctl.d/60-own.conf
echo 'net.ipv4.tcp_syn_retries = 3' | sh_on 'cat >/etc/sysctl.d/61-stranger.conf'
retries=$(on cat /proc/sys/net/ipv4/tcp_syn_retries)
printf 'u ours 2001 "Ours"\n' | want /etc/sysusers.d/own.conf
printf 'd /var/lib/ours 0750 ours ours\n' | want /etc/tmpfiles.d/own.conf
apply >/dev/null
expect "sysctl, the changed file only" "$(sh_on 'cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/net/ipv4/tcp_syn_retries' | xargs)" "63 $retries"
expect "sysusers, then tmpfiles" "$(on stat -c '%U %u %a' /var/lib/ours)" "ours 2001 750"
expect "exactly then" "$(apply)" ""
printf 'net.ipv4.ip_default_ttl = 300\nno.such.setting = 1\n' | want /etc/sysctl.d/60-own.conf
expect_words "what the kernel refuses is told" "$(apply)" "failed" "/etc/sysctl.d/60-own.conf has no full effect" \
  "net/ipv4/ip_default_ttl is 63, wanted is 300" "no/such/setting is not there"
expect_words "and tried again, though the file is written" "$(apply)" "net/ipv4/ip_default_ttl is 63, wanted is 300"
echo 'net.ipv4.ip_default_ttl = 62' | want /etc/sysctl.d/60-own.conf
dies after swap
expect "killed between the write and the tool" "$(on cat /proc/sys/net/ipv4/ip_default_ttl)" "63"
expect "the next run puts it back and does it anew" "$(apply | grep -c '~ /etc/sysctl.d/60-own.conf'), $(on cat /proc/sys/net/ipv4/ip_default_ttl), $(apply)" "1, 62, "
sh_on 'useradd -u 2100 taken 2>/dev/null || printf "u taken 2100\n" | systemd-sysusers -'
printf 'u ours 2002\nu theirs 2100\n' | want /etc/sysusers.d/own.conf
expect_words "numbers that are taken are told before anything is written" "$(apply)" "user ours is 2001 here, wanted is 2002" "user theirs cannot be 2100: that is taken"
expect "nothing was" "$(on cat /etc/sysusers.d/own.conf)" 'u ours 2001 "Ours"'
printf 'u ours 2001 "Ours"\n' | want /etc/sysusers.d/own.conf
printf 'd /var/lib/ours 0750 ours ours\nd /var/lib/nobodys 0750 no-such-user root\n' | want /etc/tmpfiles.d/own.conf
expect_words "tmpfiles of a user who is not there" "$(apply)" "failed" "systemd-tmpfiles --create /etc/tmpfiles.d/own.conf" "no-such-user"
printf 'd /var/lib/ours 0750 ours ours\n' | want /etc/tmpfiles.d/own.conf
echo no-such-module | want /etc/modules-load.d/own.conf
expect_words "a module that is not there" "$(apply)" "failed" "/etc/modules-load.d/own.conf" "no-such-module"
drop /etc/modules-load.d/own.conf
expect "mended" "$(apply | grep -c failed || true)" "0"

scene "Rules of nft"
rules() { printf 'flush ruleset\ntable inet own {\n  chain input {\n    type filter hook input priority 0; policy accept;\n    tcp dport %s drop\n  }\n}\n' "$1"; }
rules 7 | want /etc/nftables.conf
apply >/dev/null
expect_words "loaded" "$(on nft list ruleset)" "tcp dport 7 drop"
rules 'port 8' | want /etc/nftables.conf
expect_words "bad ones are refused before they are written" "$(apply)" "failed" "/etc/nftables.conf: the candidate was refused by \`nft -c -f {}\`"
expect_words "and the good ones stay" "$(on nft list ruleset; on cat /etc/nftables.conf)" "tcp dport 7 drop
	}" "    tcp dport 7 drop"
rules 7 | want /etc/nftables.conf

scene "Mounts"
mount() { printf '[Unit]\nDefaultDependencies=no\n[Mount]\nWhat=%s\nWhere=%s\nType=tmpfs\n[Install]\nWantedBy=multi-user.target\n' "$1" "$2"; }
mount tmpfs /data/good | want /etc/systemd/system/data-good.mount
printf '[Mount]\nWhat=/dev/disk/by-uuid/00000000-0000-0000-0000-000000000000\nWhere=/data/bad\nType=ext4\n[Unit]\nDefaultDependencies=no\nJobTimeoutSec=2\n' | want /etc/systemd/system/data-bad.mount
echo on it | want /data/good/file
echo on it | want /data/bad/file
echo elsewhere | want /etc/elsewhere
printf 'data-good.mount running enabled\ndata-bad.mount running\n' | says units
said=$(apply)
expect_words "one that fails" "$said" "failed data-bad.mount" "failed /data/bad/file: dependency-failed /data/bad could not be mounted"
expect "keeps what is not under the node's hold from nothing" "$(sh_on 'cat /etc/elsewhere; find /data -type f' | xargs)" "elsewhere"
drop /etc/systemd/system/data-bad.mount /data/bad
echo 'data-good.mount running enabled' | says units
apply >/dev/null
expect "the other comes with the next commit" "$(sh_on 'cat /data/good/file; findmnt -no FSTYPE /data/good' | xargs), $(apply)" "on it tmpfs, "
: | says units
drop /etc/systemd/system/data-good.mount /data/good/file
apply >/dev/null
expect "one that leaves is unmounted" "$(sh_on 'findmnt /data/good; ls /etc/systemd/system/multi-user.target.wants/data-good.mount /etc/systemd/system/data-good.mount 2>&1 | grep -c "No such"'), $(apply)" "2, "

scene "A unit that is masked, one that does not get ready, one that dies"
printf '[Service]\nExecStart=/usr/local/lib/own vend\n' | sh_on 'cat >/usr/lib/systemd/system/vend.service; systemctl daemon-reload'
echo 'vend.service running' | says units
apply >/dev/null
sh_on 'systemctl mask vend 2>/dev/null; systemctl stop vend'
expect "masked by somebody: unmasked and started" "$(steps)" "unmask vend.service
start vend.service"
expect "it runs" "$(on systemctl is-active vend), $(apply)" "active, "
printf 'vend.service masked\n' | says units
expect "masked by us" "$(steps), $(apply), $(on systemctl show -P LoadState vend)" "mask vend.service
stop vend.service, , masked"
printf '[Service]\nType=notify\nExecStart=/usr/local/lib/own own\n' | want /etc/systemd/system/own.service
echo 'own.service running' | says units
expect_words "never ready" "$(apply)" "failed own.service" "it took longer than 10 s"
expect "and not applied, however often it is looked at" "$(apply), $(apply)" "$(printf 'deferred own.service: own.service is not ready since it was started, %.0s' 1 2 | sed 's/, $//')"
printf '[Service]\nExecStart=/bin/sh -c "sleep 1; exit 3"\n' | want /etc/systemd/system/own.service
expect_words "it dies" "$(apply)" "start own.service"
until [ "$(on systemctl is-active own)" = failed ]; do sleep 0.1; done
expect_words "and is no success" "$(apply)" "failed own.service: apply-failed own.service failed after it was started; started again"
own_unit 4 | want /etc/systemd/system/own.service
apply >/dev/null
expect "mended by the next commit" "$(on systemctl is-active own), $(apply)" "active, "

tally "$BED_SUITE"
