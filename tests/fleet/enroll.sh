#!/bin/bash
# One real machine becomes a node by one command: user, keys, settings, unit, and the agent converges with a secret once
# what the command printed is merged. Prints `N passed, M failed`.
#
# Run by hand or in CI, as root; needs what `bed` needs, and: git ssh-keygen openssl age, a cargo. BINARY=… takes a
# converger that is built already. Never: an address outside its own network namespace.
set -euo pipefail
cd "$(dirname "$0")/../.."
HERE=$PWD
BED=$HERE/tests/fleet/bed
. tests/fleet/expect.sh
TAG=ce$$
NODE=$TAG-n1
DIR=$(mktemp -d "/tmp/converger-$TAG.XXXXXX")
FLEET=$DIR/fleet

if [ -z "${BINARY:-}" ]; then
  cargo build -q --locked --bin converger
  BINARY=${CARGO_TARGET_DIR:-target}/debug/converger
fi

clean() {
  local status=$?
  trap '' INT TERM
  set +e
  if [ $status != 0 ]; then
    echo "--- $NODE"
    on journalctl -u converger -n 40 --no-pager -o cat 2>/dev/null
  fi
  "$BED" down "$NODE"
  "$BED" net-down "$TAG"
  rm -rf "$DIR"
}
trap clean EXIT
trap 'exit 130' INT TERM

on() { "$BED" exec "$NODE" "$@"; }
has_reason() { on cat /run/converger/status.json 2>/dev/null | grep -q "\"reason\": *\"$1\""; }
is_converged() { on cat /run/converger/status.json 2>/dev/null | grep -q "\"state\": *\"converged\""; }

# ---- The repository: one role with a file and a secret

write() { mkdir -p "$FLEET/$(dirname "$1")" && cat >"$FLEET/$1"; }
topology() { # NODE RECIPIENT
  local environment=environments/production
  write $environment/topology.toml <<END
[tiers]
apps = { order = 10 }
[clusters.app]
tier = "apps"
roles = ["app"]
[nodes.$1]
clusters = ["app"]
addresses = { app = "10.77.0.11" }
size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }
recipient = "$2"
END
  mkdir -p "$FLEET/$environment/secrets"
  printf 'open sesame' | age -r "$2" -o "$FLEET/$environment/secrets/token.age"
  write $environment/secrets.toml <<END
[secrets.token]
version = 1
sha256 = "$(sha256sum "$FLEET/$environment/secrets/token.age" | cut -d' ' -f1)"
grant = [{ cluster = "app" }]
recipients = "$(echo "$2" | sha256sum | cut -d' ' -f1)"
END
}
commit() { git -C "$FLEET" add --all && git -C "$FLEET" commit -qm "$1" && git -C "$FLEET" push -q origin HEAD:main; }

ssh-keygen -q -t ed25519 -N '' -C founder -f "$DIR/founder"
"$BINARY" init "$FLEET" --key "$DIR/founder" --principal founder@example.org --name bed >/dev/null
introduction=$(git -C "$FLEET" config converger.introduction)
signer=$(git -C "$FLEET" config converger.signer)
rm -r "$FLEET/environments" "$FLEET/roles"
write environments/production/environment.toml <<END
format = 1
domain = "bed.internal"
os = "debian-12"
roles = []
[networks]
app = "10.77.0.0/24"
END
write roles/app/role.toml <<END
format = 1
[[file]]
path = "/etc/motd"
template = "motd"
[[file]]
path = "/etc/token"
secret = "token"
END
echo '{{ node.name }} of {{ environment.name }}' | write roles/app/motd
topology n0 "$(age-keygen 2>/dev/null | tee "$DIR/stranger" | age-keygen -y)"
mkdir "$DIR/served"
git init -q --bare -b main "$DIR/served/fleet.git"
git -C "$FLEET" remote add origin "$DIR/served/fleet.git"
commit "a small fleet"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$DIR/ca.key" -out "$DIR/served/ca.crt" -days 2 \
  -subj /CN=bed 2>/dev/null
expect "init's clone verifies itself" "$("$BINARY" --repo "$FLEET" trust verify | cut -d' ' -f1-3)" "2 commits verified,"

# ---- The machine

"$BED" net "$TAG"
"$BED" up "$NODE" "$TAG" 10.77.0.11 "$DIR/served"
enroll() {
  on converger enroll --node n1 --env production --fleet bed --remote "file://$DIR/served/fleet.git" \
    --introduction "$introduction" --signer "$signer" \
    --store-endpoint https://10.77.0.1:2379 --store-ca "$DIR/served/ca.crt" "$@"
}
"$BED" put "$NODE" "$BINARY" /root/converger
expect "without the binary in its place" "$(on /root/converger enroll --node n1 --env production --fleet bed --remote file:///x \
  --introduction "$introduction" --signer "$signer" --store-file /x 2>&1 || echo $?)" \
  "the unit runs /usr/bin/converger, which is not there: install -m 0755 /root/converger /usr/bin/converger
2"
"$BED" put "$NODE" "$BINARY" /usr/bin/converger
expect "a wrong signer leaves keys and no settings" \
  "$(signer=SHA256:W0HWqo6dmAPnbTQ0sGgCR6dk/3qEnvpRmAyRVwJ6QJE enroll >"$DIR/refused" 2>&1; echo $?) $(on ls /etc/converger | xargs)" \
  "4 age.key node.csr node.key store-ca.crt"
expect "by name" "$(grep -o '^error.[a-z-]*' "$DIR/refused")" "error[introduction-missing"
first=$(enroll)
echo "$first"
expect "enrolled" "$(head -1 <<<"$first")" "n1 is enrolled in fleet bed, environment production"
expect "files" "$(on sh -c 'cd /etc/converger; stat -c "%a %U:%G %n" . *')" "711 root:root .
600 root:root age.key
600 root:root agent.toml
600 root:root node.csr
600 root:root node.key
600 root:root store-ca.crt
600 root:root trust.toml"
expect "the unit" "$(on systemctl is-enabled converger; on systemctl is-active converger)" "enabled
active"
expect "the user may log in nowhere" "$(on getent passwd converger-fetch | cut -d: -f7)" "/usr/sbin/nologin"
until_true "the agent looked" 20 has_reason not-in-topology && expect "the agent runs, and waits for the topology" yes yes
enroll >"$DIR/second" 2>"$DIR/told"
expect "a second run prints the same and does nothing" "$(diff <(echo "$first") "$DIR/second")$(cat "$DIR/told")" ""
pid=$(on systemctl show -P MainPID converger)

recipient=$(sed -n 's/^recipient = "\(.*\)"$/\1/p' <<<"$first")
topology n1 "$recipient"
commit "n1 is a node

Converger-Allow: node-removal n0"
until_true "converged" 90 is_converged && expect "converged with its secret" "$(on cat /etc/motd /etc/token)" "n1 of production
open sesame"
expect "by the same agent" "$(on systemctl show -P MainPID converger)" "$pid"

head=$(git -C "$FLEET" rev-parse HEAD)
expect "another introduction needs --force" "$(introduction=$head enroll >/dev/null 2>&1; echo $?)" "2"
introduction=$head enroll --force >"$DIR/forced" 2>&1 || cat "$DIR/forced"
expect "the old one is kept" "$(on sh -c 'ls /etc/converger | grep -c "^trust.toml.20"')" "1"
expect "the journal knows" "$(on journalctl -o cat --no-pager | grep -c 'introduced anew')" "1"
restarted() { [ "$(on systemctl show -P MainPID converger)" != "$pid" ] && is_converged; }
until_true "restarted" 60 restarted && expect "the agent runs with it" "$(on systemctl is-active converger)" "active"

tally
