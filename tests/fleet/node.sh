#!/bin/bash
# A fleet of three on real machines: signed commits, an etcd with client certificates, systemd, and agents that run as
# systemd/converger.service. What nodes do is compared with what they must do; prints `N passed, M failed`.
#
# Run by hand or in CI, as root; needs what three.sh needs, and: age dpkg-deb.
set -euo pipefail
cd "$(dirname "$0")/../.."
TAG=cv$$
. tests/fleet/three.sh

# ---- The repository ----

recipients() { for name in operator $ALL; do recipient "$name"; done | sort; }
contents() {
  local name
  cp -r tests/fleet/app "$FLEET"
  for name in operator $ALL; do age-keygen -o "$DIR/$name.age" 2>/dev/null; done
  mkdir -p "$ENVIRONMENT/secrets"
  printf 'secret-4711\n' | age $(recipients | sed 's/^/-r /') -o "$ENVIRONMENT/secrets/token.age"
  cat >"$ENVIRONMENT/secrets.toml" <<END
operators = ["$(recipient operator)"]
[secrets.token]
version = 1
sha256 = "$(sha256sum "$ENVIRONMENT/secrets/token.age" | cut -d' ' -f1)"
grant = [{ cluster = "app" }]
recipients = "$(recipients | sha256sum | cut -d' ' -f1)"
END
  {
    printf '[tiers]\napps = { order = 10 }\n[clusters.app]\ntier = "apps"\nroles = ["app"]\n'
    printf '[clusters.app.groups.members]\nquorum = "majority"\nmax_unavailable = 1\n'
    members
  } >"$ENVIRONMENT/topology.toml"
}
set_variable() { sed -i "s/^$1 = .*/$1 = \"$2\"/" "$ENVIRONMENT/variables.toml"; }

# ---- Nodes ----

holds() { held | cut -d' ' -f2-; }
activity() { [ "$(on "$1" systemctl is-active app)" = "$2" ]; }
# How often each node did it: `1 1 1`.
count() { local node; for node in $ALL; do echo "$(on "$node" grep -c "^$1 " /var/lib/app/events || true)"; done | xargs; }
daemon_reloads() { on "$1" journalctl _PID=1 -o cat --no-pager | grep -c '^Reloading\.' || true; }
# Times in which a member was away (from its stop to its next readiness), and how many of them overlap with another's.
overlaps() {
  local node
  for node in $ALL; do on "$node" cat /var/lib/app/events | awk -v node="$node" '
    $1 == "stop" { from = $2 } $1 == "ready" && from { print from, $2, node; from = 0 }'; done |
    sort -n | awk '$1 < until { n++ } $2 > until { until = $2 } END { print n + 0 }'
}
# From outside, all the time: the most members that did not take a connection at one moment.
watch_members() {
  ip netns exec "$TAG" bash -c '
    most=0
    while :; do
      away=0
      for n in 1 2 3; do (exec 3<>/dev/tcp/10.77.0.1$n/8080) 2>/dev/null || away=$((away + 1)); done
      [ $away -le $most ] || { most=$away; echo $most >"$0"; }
      sleep 0.02
    done' "$DIR/most-away" &
  WATCHER=$!
  BESIDES+=($!)
}

# ---- The story ----

bring_up
# Another story with the same three machines.
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

scene "Bootstrap"
for node in $ALL; do on "$node" systemctl enable -q --now converger & done
wait $(jobs -p | grep -vx "$ETCD_PID")
wait_converged 60
for node in $ALL; do
  expect "$node: unit" "$(on "$node" sh -c 'systemctl is-active app; systemctl is-enabled app' | xargs)" "active enabled"
done
expect "user of sysusers.d" "$(on app1 getent passwd app | cut -d: -f5,6)" "the app:/var/lib/app"
expect "directory of tmpfiles.d" "$(on app1 stat -c '%U:%G %a' /var/lib/app)" "app:app 750"
expect "owners and modes" \
  "$(on app1 stat -c '%n %U:%G %a' /etc/app/app.conf /etc/app/greeting /etc/app/token /usr/local/lib/app-server /etc/motd)" \
  "/etc/app/app.conf root:app 640
/etc/app/greeting app:app 600
/etc/app/token app:root 400
/usr/local/lib/app-server root:root 755
/etc/motd root:root 644"
expect "template" "$(on app2 cat /etc/motd)" "hello from app2"
expect "secret" "$(on app1 cat /etc/app/token)" "secret-4711"
expect "answers" "$(on app1 perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new("10.77.0.13:8080"); print $s "GET / HTTP/1.0\r\n\r\n"; print((<$s>)[-1])')" \
  "level one, good morning"
# A validator leaves nothing but words.
checked_by() { on app1 journalctl -t checked -o cat --no-pager | sed -n "/^$1:/{p;q}"; }
expect "validated without privileges" "$(checked_by nobody)" \
  "nobody: app.conf root 644, in root 755, writes beside it: no"
expect "a secret is checked by its owner" "$(checked_by app)" "app: token app 400, in root 755, writes beside it: no"
expect "nothing of the checks is left" "$(on app1 ls -A /run/converger-validate)" ""
expect "state is root's alone" "$(on app1 stat -c '%U %a' /run/converger /var/lib/converger /run/converger-validate | xargs)" "root 700 root 700 root 755"
expect "bootstrap took no hold" "$(for node in $ALL; do on "$node" journalctl -u converger -o cat | grep -c 'claimed' || true; done | xargs)" "0 0 0"
expect "one start each" "$(count start)" "1 1 1"
expect "reports in etcd" "$(store get --prefix "$PREFIX/n/" --print-value-only | grep '"state":' | jq -r '"\(.node) \(.state)"' | sort | xargs)" \
  "app1 converged app2 converged app3 converged"
expect "status.json" "$(status app1 '"\(.node) \(.state) \(.units["app.service"].active) \(.units["app.service"].settled)"')" "app1 converged active true"

watch_members
scene "A change of configuration rolls"
set_variable level two
commit "level two"
wait_converged
expect "one restart each" "$(count start)" "2 2 2"
expect "holds were taken" "$(for node in $ALL; do on "$node" journalctl -u converger -o cat | grep -c 'claimed, asked, armed' || true; done | xargs)" "1 1 1"
expect "away at the same time, by the members' own clock" "$(overlaps)" "0"
expect "most members away at one moment, seen from outside" "$(cat "$DIR/most-away")" "1"

scene "A reload is no restart"
set_variable greeting "good evening"
commit "greeting"
wait_converged
expect "reloads, starts" "$(count reload), $(count start)" "1 1 1, 2 2 2"

scene "Drift"
on app1 sh -c 'echo "level = three" >/etc/app/app.conf; chmod 0666 /etc/motd; chown root /etc/app/greeting'
is_put_back() { [ "$(on app1 sh -c 'cat /etc/app/app.conf; stat -c "%U %a" /etc/motd /etc/app/greeting' | xargs)" = "level = two root 644 app 600" ]; }
until_true "drift is put back" 10 is_put_back && expect "put back" "$(on app1 cat /etc/app/app.conf)" "level = two"
until_true "counted" 5 [ "$(sleep 1; status app1 .drift_repaired)" -ge 3 ] || true
expect "drift is counted, nothing restarted" "$(status app1 .drift_repaired), $(count start)" "3, 2 2 2"
expect "what was there is kept" "$(on app1 sh -c 'grep -l three /var/lib/converger/backups/etc/app/app.conf/* | wc -l')" "1"
wait_converged

scene "A restart by hand is not repeated"
on app2 systemctl restart app
sleep 1
on app2 systemctl reload converger
sleep 2
wait_converged
set_variable motd "still here"
commit "motd"
wait_converged
expect "starts" "$(count start)" "2 3 2"
expect "harmless file" "$(on app2 cat /etc/motd)" "still here from app2"

scene "A change of the unit file"
before=$(daemon_reloads app1)
set_variable description "the same app"
commit "description"
wait_converged
expect "starts" "$(count start)" "3 4 3"
expect "daemon-reloads" "$(($(daemon_reloads app1) - before))" "1"
expect "systemd has it" "$(on app1 systemctl show -P Description app), $(on app1 systemctl show -P NeedDaemonReload app)" "the same app, no"

scene "The agent is stopped in the middle of a batch"
set_variable level three
commit "level three"
until_true "app1 stops" 60 activity app1 deactivating
on app1 systemctl stop converger
expect "the batch was finished" "$(on app1 sh -c 'systemctl is-active converger; systemctl is-active app; cat /etc/app/app.conf; ls -d /.converger-stage 2>&1 | grep -c "No such"' | xargs)" "inactive active level = three 1"
expect "its hold stays with it" "$(holds)" "app1 armed"
on app1 systemctl start converger
wait_converged
expect "one restart each" "$(count start)" "4 5 4"

scene "The agent is killed before and after the exchange"
set_variable level four
commit "level four"
killed() { # NODE STATE
  until_true "$1 is $2" 60 activity "$1" "$2"
  on "$1" systemctl kill -s KILL --kill-who=main converger
}
killed app1 deactivating & first=$!
killed app2 activating & second=$!
wait $first $second
wait_converged 90
expect "exactly one restart each" "$(count start)" "5 6 5"
expect "agents came back" "$(for node in app1 app2 app3; do on $node systemctl show -P NRestarts converger; done | xargs)" "1 1 0"
expect "new configuration" "$(for node in $ALL; do on "$node" cat /etc/app/app.conf; done | uniq)" "level = four"

scene "A candidate that its validator refuses"
set_variable level "4!"
commit "no level"
until_true "app1 refuses" 30 has_reason app1 apply-failed
expect_words "said" "$(status app1 .sentence)" "/etc/app/app.conf" "candidate was refused" "/usr/local/lib/check"
attempts() { on app1 journalctl -u converger -o cat --no-pager | grep -c 'candidate was refused' || true; }
before=$(attempts)
sleep 5
tries=$(($(attempts) - before))
expect "it is not tried again and again (at most twice in 5 s; $tries times)" "$((tries <= 2))" "1"
expect "nothing was stopped or replaced" "$(count start), $(on app1 cat /etc/app/app.conf)" "5 6 5, level = four"
git -C "$FLEET" revert --no-edit HEAD >/dev/null && push
wait_converged
expect "reverted without a restart" "$(count start)" "5 6 5"

scene "A service that does not start with its new configuration"
set_variable level broken
commit "broken"
one_failed() { holds | grep -q failed; }
until_true "one fails" 60 one_failed
sick=$(holds | cut -d' ' -f1)
expect "its hold is kept" "$(holds)" "$sick failed"
sleep 2
sentence=$(status "$sick" .sentence)
expect_words "its error" "$sentence" "cannot start app.service" "status 3" "secrets are near" "journalctl _SYSTEMD_INVOCATION_ID="
invocation=$(sed -n 's/.*\(_SYSTEMD_INVOCATION_ID=[0-9a-f]*\).*/\1/p' <<<"$sentence")
expect_words "its words, on the node only" "$(on "$sick" journalctl --no-pager --output cat "$invocation" 2>&1 || true)" "cannot run on level broken"
others=$(echo "$ALL" | xargs -n1 | grep -v "$sick")
others_wait() { local node; for node in $others; do has_reason "$node" hold-failed || return 1; done; }
until_true "the others wait" 30 others_wait && expect "the others wait" "$(for node in $others; do status "$node" .reason; done | xargs)" "hold-failed hold-failed"
expect "and run as they did" "$(for node in $others; do on "$node" cat /etc/app/app.conf; done | uniq)" "level = four"
git -C "$FLEET" revert --no-edit HEAD >/dev/null && push
wait_converged
expect "repaired" "$(on "$sick" sh -c 'systemctl is-active app; cat /etc/app/app.conf' | xargs)" "active level = four"
starts=$(count start)
set_variable level five
commit "level five"
wait_converged
expect "life goes on" "$(count start)" "$(for n in $starts; do echo $((n + 1)); done | xargs)"

scene "etcd is away"
starts=$(count start)
stop_etcd
set_variable level six
set_variable motd "without etcd"
commit "level six, motd"
store_away() { local node; for node in $ALL; do has_reason "$node" store-unreachable && [ "$(on "$node" cat /etc/motd)" = "without etcd from $node" ] || return 1; done; }
until_true "all notice" 60 store_away && expect "files go through" "$(on app3 cat /etc/motd)" "without etcd from app3"
expect "nothing restarts" "$(count start)" "$starts"
start_etcd
wait_converged 90
expect "afterwards" "$(count start)" "$(for n in $starts; do echo $((n + 1)); done | xargs)"

scene "A package"
package=$DIR/package
mkdir -p "$package/DEBIAN" "$package/lib/systemd/system" "$DIR/served/apt"
printf 'Package: bed-daemon\nVersion: 1.0-1\nArchitecture: all\nMaintainer: bed <bed@example.org>\nDescription: starts itself\n' >"$package/DEBIAN/control"
printf '#!/bin/sh\nset -e\numask >/root/umask\ndeb-systemd-helper enable bed-daemon.service >/dev/null\ndeb-systemd-invoke start bed-daemon.service >/dev/null || true\n' >"$package/DEBIAN/postinst"
chmod 755 "$package/DEBIAN/postinst"
printf '[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' >"$package/lib/systemd/system/bed-daemon.service"
dpkg-deb --root-owner-group -b "$package" "$DIR/served/apt/bed-daemon.deb" >/dev/null
(cd "$DIR/served/apt" && { dpkg-deb -f bed-daemon.deb; printf 'Filename: ./bed-daemon.deb\nSize: %s\nSHA256: %s\n' "$(stat -c %s bed-daemon.deb)" "$(sha256sum bed-daemon.deb | cut -d' ' -f1)"; } >Packages)
for node in $ALL; do on "$node" sh -c "rm -rf /etc/apt/sources.list.d; echo 'deb [trusted=yes] file:$DIR/served/apt ./' >/etc/apt/sources.list"; done
on app1 sh -c 'printf "#!/bin/sh\nexit 0\n" >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d'
printf '\n[[package]]\nname = { debian = "bed-daemon" }\nversion = "1.0-1"\n' >>"$FLEET/roles/base/role.toml"
commit "a package"
wait_converged
expect "installed" "$(for node in $ALL; do on "$node" dpkg-query -W -f '${db:Status-Status} ${Version}' bed-daemon; echo; done | uniq)" "installed 1.0-1"
expect "it started nothing" "$(for node in $ALL; do on "$node" systemctl is-active bed-daemon || true; done | uniq)" "inactive"
expect "with an ordinary umask" "$(on app1 cat /root/umask)" "0022"
expect "the administrator's policy is back, elsewhere is none" "$(on app1 tail -1 /usr/sbin/policy-rc.d), $(on app2 sh -c 'ls /usr/sbin | grep -c policy-rc || true')" "exit 0, 0"
printf '\n[[package]]\nname = { debian = "no-such-package" }\n' >>"$FLEET/roles/base/role.toml"
commit "a package that does not exist"
refused() { local node; for node in $ALL; do has_reason "$node" apply-failed || return 1; done; }
until_true "all fail" 60 refused
expect_words "said" "$(status app1 .sentence)" "cannot install package no-such-package" "Unable to locate package"
git -C "$FLEET" revert --no-edit HEAD >/dev/null && push
wait_converged

scene "An artifact"
release() { # VERSION
  mkdir -p "$DIR/tool-$1/bin"
  echo "tool $1" >"$DIR/tool-$1/bin/tool"
  tar -C "$DIR" -czf "$DIR/served/tool-$1.tgz" "tool-$1"
}
tool_at() { # VERSION DIGEST
  printf '[tool]\nversion = "%s"\nsha256 = "%s"\nurls = ["file://%s"]\n' "$1" "$2" "$DIR/served/tool-$1.tgz" >"$FLEET/environments/production/versions.toml"
}
digest() { sha256sum "$DIR/served/tool-$1.tgz" | cut -d' ' -f1; }
of_all() { local node; for node in $ALL; do on "$node" "$@"; done | uniq; }
release 1.0
release 1.1
tool_at 1.0 "$(digest 1.0)"
printf '\n[[artifact]]\ncomponent = "tool"\ninto = "/opt/tool"\n' >>"$FLEET/roles/base/role.toml"
commit "a tool"
wait_converged
expect "unpacked" "$(of_all cat /opt/tool/current/bin/tool)" "tool 1.0"
tool_at 1.1 "$(digest 1.0)"
commit "another tool, and the old digest"
refused() { local node; for node in $ALL; do has_reason "$node" digest-mismatch || return 1; done; }
until_true "all refuse it" 60 refused && expect "the old one stays" "$(of_all cat /opt/tool/current/bin/tool)" "tool 1.0"
tool_at 1.1 "$(digest 1.1)"
commit "its own digest"
wait_converged
expect "switched" "$(of_all readlink /opt/tool/current), $(of_all cat /opt/tool/1.0/bin/tool)" "1.1, tool 1.0"

scene "An action of the whole cluster"
# What it changes is nobody's own: it is behind an address, and takes its time.
cat >"$DIR/world.py" <<'END'
import socketserver, sys, threading, time
lock, world = threading.Lock(), {"value": "", "running": 0}
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        words = self.rfile.readline().decode().split()
        if words[0] == "get":
            self.wfile.write((world["value"] + "\n").encode())
            return
        with lock:
            world["running"] += 1
            print("set", words[1], "by", words[2], "beside", world["running"] - 1, file=sys.stderr, flush=True)
        time.sleep(3)
        with lock:
            world["running"] -= 1
            world["value"] = words[1]
        self.wfile.write(b"done\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("10.77.0.1", 7000), Handler).serve_forever()
END
ip netns exec "$TAG" python3 "$DIR/world.py" 2>"$DIR/world.log" &
WORLD=$!
BESIDES+=($!)
cat >"$FLEET/roles/app/world" <<'END'
#!/bin/bash
exec 3<>/dev/tcp/10.77.0.1/7000 || exit 2
case $1 in
set) echo "set $2 $3" >&3 && read -r answer <&3 && [ "$answer" = "done" ] ;;
is) echo get >&3 && read -r value <&3 && [ "$value" = "$2" ] ;;
esac
END
cat >>"$FLEET/roles/app/role.toml" <<'END'

[[file]]
path = "/usr/local/lib/world"
source = "world"
mode = "0755"

[[action]]
name = "world"
run = ["/usr/local/lib/world", "set", "{{ vars.world }}", "{{ node.name }}"]
unless = ["/usr/local/lib/world", "is", "{{ vars.world }}"]
scope = "cluster"
END
echo 'world = "first"' >>"$FLEET/environments/production/variables.toml"
commit "a world"
wait_converged
expect "one member did it, once" "$(sed 's/ by app[123]//' "$DIR/world.log")" "set first beside 0"
set_variable world second
commit "another world"
until_true "one begins" 60 grep -q second "$DIR/world.log"
actor=$(sed -n 's/set second by \(app[123]\).*/\1/p' "$DIR/world.log")
on "$actor" systemctl kill -s KILL --kill-who=main converger
wait_converged
expect "killed in the middle, and done once all the same" "$(sed 's/ by app[123]//' "$DIR/world.log" | xargs)" "set first beside 0 set second beside 0"
expect "no turn is left" "$(store get --prefix "$PREFIX/act/" --keys-only)" ""
expect "on record" "$(store get "$PREFIX/action/app/world" --print-value-only | jq -r .commit)" "$(head)"
kill "$WORLD" && wait "$WORLD" 2>/dev/null || true

kill "$WATCHER" && wait "$WATCHER" 2>/dev/null || true
expect "away at the same time, in the whole story, but for what was broken on purpose" "$(overlaps)" "0"
tally
