# One node of the fleet as a file tree: this machine's root below, what was rendered on top. Sourced by run.

# Values for what was masked. Certificates are made here, by an authority of this run.
secret_value() { case $1 in vrrp-password) echo test-pw8 ;; *) echo "test-$1" ;; esac; }

make_authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=platform test authority' \
    -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
}

make_certificate() { # NODE FQDN -> PEM: PKCS#8 key, certificate
  local node=$1 fqdn=$2 names
  names="DNS:$node,DNS:$fqdn,DNS:localhost,IP:127.0.0.1$(sed 's/^/,IP:/' <(addresses_of "$node") | tr -d '\n')"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$fqdn" \
    -keyout "$work/$node.key" -out "$work/$node.csr" 2>/dev/null
  openssl x509 -req -in "$work/$node.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") 2>/dev/null >"$work/$node.crt"
  openssl pkcs8 -topk8 -nocrypt -in "$work/$node.key"
  cat "$work/$node.crt"
}

# What this node's own files listen on or call their own.
addresses_of() { # NODE
  local dir=$rendered/$1
  {
    grep -hoP '^ETCD_LISTEN_\w+=.*' "$dir/etc/etcd/etcd.env" | grep -oP '//\K[\d.]+'
    grep -hoP '^listeners=.*' "$dir/etc/kafka/server.properties" | grep -oP '//\K[\d.]+'
    grep -hoP '^bind \K.*' "$dir/etc/redis/managed.conf" | tr ' ' '\n'
    grep -hoP '^\s+bind \K[\d.]+' "$dir/etc/haproxy/haproxy.cfg"
    grep -hoP '^\s+(unicast_src_ip \K[\d.]+|[\d.]+(?= dev ))' "$dir/etc/keepalived/keepalived.conf"
  } 2>/dev/null | sort -u | grep -v '^127\.' || true
}

fqdn_of() { # NODE: from what was rendered for all of them
  grep -hoP "^[\d.]+ \K$1\.\S+(?= $1\$)" "$rendered/$1/etc/hosts" | head -n 1
}

# $work is a tmpfs: an overlay's upper layer may not lie within its lower one.
make_node() { # NODE
  local node=$1 top=$work/$node path name owner group mode fqdn
  fqdn=$(fqdn_of "$node")
  mkdir -p "$top/up" "$top/wk" "$top/root" "$top/up/opt/etcd" "$top/up/opt/kafka"
  cp -r --no-preserve=ownership "$rendered/$node/." "$top/up/"
  # What render writes is for its caller only; on a node, /etc is for everybody.
  chmod -R u=rwX,go=rX "$top/up"
  make_certificate "$node" "$fqdn" >"$work/$node.pem"
  while IFS= read -r path; do
    if grep -q '^«secret:tls-' "$path"; then
      cp "$work/$node.pem" "$path"
    else
      while read -r name; do
        sed -i "s/«secret:$name»/$(secret_value "$name")/g" "$path"
      done < <(grep -o '«secret:[^»]*»' "$path" | sed 's/«secret://; s/»//' | sort -u)
    fi
  done < <(grep -rl '«secret:' "$top/up" || true)
  install -D -m 644 "$work/ca.crt" "$top/up/etc/datalyptica/pki/ca.crt"
  # Without the users that this machine's own packages made: the roles' sysusers files must make them.
  for path in passwd group shadow gshadow; do
    grep -vE '^(haproxy|redis|keepalived_script|etcd|kafka):' "/etc/$path" >"$top/up/etc/$path"
  done
  mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/wk" "$top/root"
  mount --rbind /dev "$top/root/dev"
  mount -t proc proc "$top/root/proc"
  mount -t tmpfs tmpfs "$top/root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$top/root/tmp"
  mkdir -p "$top/root/opt/etcd/current" "$top/root/opt/kafka/current"
  mount --bind "$etcd" "$top/root/opt/etcd/current"
  mount --bind "$kafka" "$top/root/opt/kafka/current"
  make_network "$node"
  # As converger does: users, directories, then owners and modes of the files.
  expect "$node: sysusers.d" quiet systemd-sysusers --root="$top/root" $(ls "$top/root"/etc/sysusers.d/*.conf | xargs -n1 basename)
  expect "$node: tmpfiles.d" quiet systemd-tmpfiles --root="$top/root" --create $(ls "$top/root"/etc/tmpfiles.d/*.conf | xargs -n1 basename)
  while read -r owner group mode path; do
    chroot "$top/root" chown "$owner:$group" "$path"
    chmod "$mode" "$top/root$path"
  done < <(python3 "$here/rules.py" attributes "$repo/repo-template/roles" "$rendered/$node")
}

# Each node has a network of its own, with all of its addresses, and reaches the others through this one.
declare -A net_of=() node_index=()

make_hub() {
  mkdir -p "$work/proc"
  mount -t proc proc "$work/proc"
  echo 1 >"$work/proc/sys/net/ipv4/ip_forward"
  ip link set lo up
  ip addr add 169.254.0.1/32 dev lo
}

make_network() { # NODE
  node_index[$1]=${#net_of[@]}
  local node=$1 far=v${#net_of[@]} address interface first= interfaces=()
  unshare --net sleep infinity &
  started+=($!)
  net_of[$node]=$!
  until [ "$(readlink "/proc/${net_of[$node]}/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  # keepalived looks for the interfaces that it is told to use; the others lead nowhere.
  mapfile -t interfaces < <(grep -hoP '^\s+interface \K\S+' "$rendered/$node/etc/keepalived/keepalived.conf" 2>/dev/null | sort -u)
  [ ${#interfaces[@]} -gt 0 ] || interfaces=(eth1)
  ip link add "$far" type veth peer name "${interfaces[0]}" netns "${net_of[$node]}"
  ip link set "$far" up
  in_net "$node" ip link set lo up
  for interface in "${interfaces[@]}"; do
    [ "$interface" = "${interfaces[0]}" ] || in_net "$node" ip link add "$interface" type veth peer name "far-$interface"
    in_net "$node" ip link set "$interface" up
  done
  for address in $(addresses_of "$node"); do
    # A virtual address is nobody's yet.
    ! grep -qsE "^\s+$address dev " "$rendered/$node/etc/keepalived/keepalived.conf" || continue
    in_net "$node" ip addr add "$address/32" dev "${interfaces[0]}"
    ip route add "$address/32" dev "$far"
    [ -n "$first" ] || first=$address
    ! grep -q "^$address " "$rendered/$node/etc/hosts" || first=$address
  done
  in_net "$node" ip route add 169.254.0.1 dev "${interfaces[0]}" scope link
  in_net "$node" ip route add default via 169.254.0.1 src "$first"
}

in_net() { # NODE COMMAND...: in the node's network, with this machine's files
  nsenter --net="/proc/${net_of[$1]}/ns/net" -- "${@:2}"
}

on() { # NODE USER COMMAND...: becomes the command, so that $! of `on … &` is the server itself
  local node=$1 root=$work/$1/root user=$2
  shift 2
  exec nsenter --net="/proc/${net_of[$node]}/ns/net" -- chroot "$root" setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@"
}
