# Three machines in a network of their own, beside an etcd with client certificates and a signed repository that is served
# to them. Sourced by a suite that has said TAG (two letters of its own and its pid) and that makes `contents`, which fills
# $FLEET and $ENVIRONMENT; `bring_up` does the rest. Needs what `bed` needs, and: git ssh-keygen openssl jq, a cargo,
# tools/etcd. BINARY=… takes a converger that is built already. Never: an address outside its own network namespace.

. tests/fleet/expect.sh

BED=$PWD/tests/fleet/bed
ALL="app1 app2 app3"
PREFIX=/converger/app-fleet/production
DIR=$(mktemp -d "/tmp/converger-$TAG.XXXXXX")
FLEET=$DIR/fleet
ENVIRONMENT=$FLEET/environments/production
ETCD_PID=''
# What else runs, by pid.
BESIDES=()

if [ -z "${BINARY:-}" ]; then
  cargo build -q --locked --bin converger
  BINARY=${CARGO_TARGET_DIR:-target}/debug/converger
fi
BINARY=$(realpath "$BINARY")
# What the machines get.
INSTALLED=$BINARY
ETCD=$(dirname "$(command -v "${ETCD_BINARY:-}" || ls .cache/etcd-*/bin/etcd | tail -1)")

clean() {
  local status=$? node pid
  # Nothing may keep it from the end.
  trap '' INT TERM
  set +e
  if [ -z "${TOLD:-}" ]; then
    printf '\nended early: %s passed, %s failed\n' "$PASSED" "$FAILED"
    if [ $status != 0 ]; then
      for node in $ALL; do echo "--- $node"; on "$node" journalctl -n 40 --no-pager -o cat 2>/dev/null; done
    fi
  fi
  for pid in "${BESIDES[@]}"; do kill "$pid" 2>/dev/null; done
  for node in $ALL; do "$BED" down "$TAG-$node"; done
  stop_etcd
  "$BED" net-down "$TAG"
  rm -rf "$DIR"
}
trap clean EXIT
trap 'exit 130' INT TERM

on() { local node=$1; shift; "$BED" exec "$TAG-$node" "$@"; }
address() { echo "10.77.0.1${1#app}"; }

# What a run left that was killed itself: its machines, and all that runs in its network.
KIND=${TAG%%[0-9]*}
for old in /run/netns/"$KIND"*[0-9]; do
  old=${old##*/}
  [[ "$old" =~ ^$KIND[0-9]+$ ]] && ! [ -d "/proc/${old#"$KIND"}" ] || continue
  for node in $ALL; do "$BED" down "$old-$node"; done
  ip netns pids "$old" | xargs -r kill
  "$BED" net-down "$old"
  rm -rf /tmp/converger-"$old".*
done

# ---- The store ----

openssl_quietly() { openssl "$@" 2>/dev/null; }
authority() { (
  cd "$DIR"
  openssl_quietly req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=bed
  for name in etcd operator $ALL; do
    openssl_quietly req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -out "$name.csr" -subj "/CN=$name"
    openssl_quietly x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$name.crt" \
      -extfile <(echo 'subjectAltName=IP:10.77.0.1')
  done
) }
start_etcd() {
  ip netns exec "$TAG" "$ETCD/etcd" --data-dir "$DIR/etcd" --log-level error \
    --listen-client-urls https://10.77.0.1:2379 --advertise-client-urls https://10.77.0.1:2379 \
    --listen-peer-urls http://10.77.0.1:2380 --client-cert-auth --trusted-ca-file "$DIR/ca.crt" \
    --cert-file "$DIR/etcd.crt" --key-file "$DIR/etcd.key" >>"$DIR/etcd.log" 2>&1 &
  ETCD_PID=$!
  until_true "etcd answers" 20 store endpoint health >/dev/null
}
stop_etcd() {
  [ -n "$ETCD_PID" ] || return 0
  kill "$ETCD_PID" && wait "$ETCD_PID" || true
  ETCD_PID=''
}
store() {
  ip netns exec "$TAG" "$ETCD/etcdctl" --endpoints https://10.77.0.1:2379 --cacert "$DIR/ca.crt" --cert "$DIR/operator.crt" \
    --key "$DIR/operator.key" --command-timeout 2s "$@" 2>/dev/null
}
# `GROUP NODE PHASE`
held() { store get --prefix "$PREFIX/hold/" --print-value-only | jq -r '"\(.group) \(.node) \(.phase)"'; }
is_free() { [ -z "$(held)" ]; }

# ---- The repository ----

members() { # the nodes of a topology, each with its key if it has one
  local node
  for node in $ALL; do
    printf '[nodes.%s]\nclusters = ["app"]\naddresses = { app = "%s" }\n' "$node" "$(address "$node")"
    printf 'size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }\n'
    [ ! -e "$DIR/$node.age" ] || printf 'recipient = "%s"\n' "$(recipient "$node")"
  done
}
recipient() { sed -n 's/# public key: //p' "$DIR/$1.age"; }
repository() {
  local setting
  mkdir -p "$DIR/served"
  contents
  ssh-keygen -q -t ed25519 -N '' -C founder -f "$DIR/founder"
  mkdir -p "$FLEET/trust"
  echo "founder@example.org $(cut -d' ' -f1,2 "$DIR/founder.pub")" >"$FLEET/trust/allowed_signers"
  printf '[principals."founder@example.org"]\nroles = ["root", "deploy"]\npaths = ["**"]\n' >"$FLEET/trust/policy.toml"
  git init -q -b main "$FLEET"
  for setting in gpg.format=ssh "user.signingkey=$DIR/founder" commit.gpgsign=true user.name=founder user.email=founder@example.org; do
    git -C "$FLEET" config "${setting%%=*}" "${setting#*=}"
  done
  git -C "$FLEET" add --all
  git -C "$FLEET" commit -qm 'the first commit'
  git clone -q --bare "$FLEET" "$DIR/served/forge.git"
  git -C "$FLEET" remote add origin "$DIR/served/forge.git"
  (cd "$FLEET" && "$BINARY" check --quiet) || { echo "the repository has problems"; exit 1; }
  cat >"$DIR/trust.toml" <<END
fleet = "app-fleet"
ref = "refs/heads/main"
policy = "standard"
introduction = { commit = "$(head)", signer = "$(ssh-keygen -lf "$DIR/founder.pub" | cut -d' ' -f2)", seq = 1 }
[[remotes]]
url = "file://$DIR/served/forge.git"
END
}
head() { git -C "$FLEET" rev-parse HEAD; }
push() { git -C "$FLEET" push -q origin main; }
commit() { git -C "$FLEET" add --all && git -C "$FLEET" commit -qm "$1" && push; }
revert() { git -C "$FLEET" revert --no-edit HEAD >/dev/null && push; }

# ---- Nodes ----

machine() {
  local node=$1 file identities=''
  local files="agent.toml=$node.toml trust.toml=trust.toml ca.crt=ca.crt node.crt=$node.crt node.key=$node.key"
  [ ! -e "$DIR/$node.age" ] || { identities='"age.key"'; files+=" age.key=$node.age"; }
  "$BED" up "$TAG-$node" "$TAG" "$(address "$node")" "$DIR/served"
  "$BED" put "$TAG-$node" "$INSTALLED" /usr/bin/converger
  on "$node" install -m 0644 -D /dev/stdin /usr/lib/sysusers.d/converger.conf <systemd/converger.sysusers
  on "$node" install -m 0644 -D /dev/stdin /usr/lib/tmpfiles.d/converger.conf <systemd/converger.tmpfiles
  on "$node" systemd-sysusers
  on "$node" systemd-tmpfiles --create converger.conf
  cat >"$DIR/$node.toml" <<END
node = "$node"
environment = "production"
trust = "trust.toml"
identities = [$identities]
[store]
kind = "etcd"
endpoints = ["https://10.77.0.1:2379"]
ca = "ca.crt"
cert = "node.crt"
key = "node.key"
END
  for file in $files; do
    on "$node" install -m 0600 /dev/stdin "/etc/converger/${file%%=*}" <"$DIR/${file#*=}"
  done
  for file in converger.service converger-roll-back.service; do
    on "$node" install -m 0644 /dev/stdin "/etc/systemd/system/$file" <"systemd/$file"
  done
  on "$node" systemctl enable -q converger-roll-back
  on "$node" systemctl daemon-reload
}
bring_up() {
  local node pid booting=''
  "$BED" image
  "$BED" net "$TAG"
  authority
  start_etcd
  repository
  for node in $ALL; do machine "$node" & booting="$booting $!"; done
  for pid in $booting; do wait "$pid"; done
}
status() { on "$1" cat /run/converger/status.json 2>/dev/null | jq -r "$2"; }
is_at() { # COMMIT NODE…
  local commit=$1 node
  shift
  for node in "$@"; do [ "$(status "$node" '"\(.state) \(.applied.commit)"')" = "converged $commit" ] || return 1; done
}
wait_converged() { until_true "all converged" "${1:-60}" is_at "$(head)" $ALL && until_true "no hold left" 20 is_free; }
has_reason() { [ "$(status "$1" .reason)" = "$2" ]; }
