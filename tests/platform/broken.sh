# Would each check notice? Every one gets a file with one mistake. Sourced by run.

break_file() { # NODE PATH SED-SCRIPT -> path of a broken copy, as the node sees it
  local copy=/tmp/broken-$(basename "$2")
  sed "$3" "$work/$1/root$2" >"$work/$1/root$copy"
  chmod 644 "$work/$1/root$copy"
  ! cmp -s "$work/$1/root$2" "$work/$1/root$copy" || { echo "sed changed nothing in $2" >&2; return 1; }
  echo "$copy"
}

broken() { # LABEL NODE PATH SED-SCRIPT
  local copy
  copy=$(break_file "$2" "$3" "$4")
  refuse "$1" judge "$2" "$3" "$copy"
}

first_with() { with "$1" | head -n 1; }

redis_refuses() { # NODE SERVER STATE MANAGED: it must stop by itself, with a reason
  if timeout 5 nsenter --net="/proc/${net_of[$1]}/ns/net" -- chroot "$work/$1/root" setpriv --reuid=redis --regid=redis --clear-groups -- "$2" "$3" --include "$4" --daemonize no; then
    return 1
  else
    [ $? != 124 ] # still running when its time was up: it took the file
  fi
}

broken_unit() { # NODE UNIT SED-SCRIPT
  local path=$work/$1/root/etc/systemd/system/$2 kept=$work/kept
  cp "$path" "$kept"
  sed -i "$3" "$path"
  refuse "unit: $4" verify_unit "$1" "$2"
  cp "$kept" "$path"
}

check_broken() {
  local node
  if node=$(first_with etc/haproxy/haproxy.cfg) && [ -n "$node" ]; then
    broken "haproxy.cfg: unknown keyword" "$node" /etc/haproxy/haproxy.cfg 's/option httplog/option httplogg/'
    broken "haproxy.cfg: backend that does not exist" "$node" /etc/haproxy/haproxy.cfg 's/default_backend unknown-host/default_backend nobody/'
    broken "haproxy.cfg: certificate that does not exist" "$node" /etc/haproxy/haproxy.cfg 's/platform.pem/other.pem/'
    broken "haproxy.cfg: the same server twice" "$node" /etc/haproxy/haproxy.cfg '0,/^    server /{/^    server /{p}}'
  fi
  if node=$(first_with etc/keepalived/keepalived.conf) && [ -n "$node" ]; then
    broken "keepalived.conf: unknown keyword" "$node" /etc/keepalived/keepalived.conf 's/preempt_delay/preempt_dela/'
    broken "keepalived.conf: unknown interface" "$node" /etc/keepalived/keepalived.conf 's/interface .*/interface nowhere0/'
    broken "keepalived.conf: priority out of range" "$node" /etc/keepalived/keepalived.conf 's/priority .*/priority 900/'
    broken "keepalived.conf: address that is none" "$node" /etc/keepalived/keepalived.conf 's/unicast_src_ip .*/unicast_src_ip 10.20.1/'
    broken "keepalived.conf: a password that would be cut off" "$node" /etc/keepalived/keepalived.conf \
      's/^    track_script {/    authentication {\n        auth_type PASS\n        auth_pass nine-char\n    }\n    track_script {/'
  fi
  if node=$(first_with etc/kafka/server.properties) && [ -n "$node" ]; then
    broken "server.properties: comment after a number" "$node" /etc/kafka/server.properties 's/^log.retention.hours=.*/& # a week/'
    broken "server.properties: role that does not exist" "$node" /etc/kafka/server.properties 's/^process.roles=.*/process.roles=broker,manager/'
    broken "server.properties: controller without its listener" "$node" /etc/kafka/server.properties 's/^\(listeners=.*\),CONTROLLER:.*/\1/'
    broken "server.properties: listener without a protocol" "$node" /etc/kafka/server.properties 's/CLIENT:SSL,//'
    sed 's/^replica.fetch.max.bytes/replica.fetch.max.byte/' "$rendered/$node/etc/kafka/server.properties" >"$work/typo.properties"
    refuse "server.properties: unknown name" kafka_names "$work/typo.properties"
  fi
  if node=$(first_with etc/redis/managed.conf) && [ -n "$node" ]; then
    refuse_or_run "managed.conf of Redis: unknown directive" "$node" redis-server /var/lib/redis/state.conf /etc/redis/managed.conf 's/^appendfsync/appendfsyncc/'
    refuse_or_run "managed.conf of Redis: value that is none" "$node" redis-server /var/lib/redis/state.conf /etc/redis/managed.conf 's/^maxmemory .*/maxmemory lots/'
    refuse_or_run "managed.conf of Sentinel: unknown directive" "$node" redis-sentinel /var/lib/redis-sentinel/sentinel.conf \
      /etc/redis-sentinel/managed.conf 's/^sentinel parallel-syncs/sentinel parallel-sync/'
    refuse_or_run "managed.conf of Sentinel: another master's name" "$node" redis-sentinel /var/lib/redis-sentinel/sentinel.conf \
      /etc/redis-sentinel/managed.conf 's/^\(sentinel auth-pass\) \S*/\1 nobody/'
  fi
  if node=$(first_with etc/etcd/etcd.env) && [ -n "$node" ]; then
    # etcd starts all the same and says it in its log, which is what check_etcd reads.
    printf '{"level":"warn","msg":"unrecognized environment variable"}\n' >"$work/etcd-self-test.log"
    sed -i 's/^ETCD_QUOTA_BACKEND_BYTES/ETCD_QUOTA_BACKEND_BYTEZ/' "$work/$node/root/etc/etcd/etcd.env"
    rm -f "$work"/etcd-*.log
    start "$node" etcd "$work/etcd-$node.log" bash -c "$etcd_as_unit"
    soon 5 grep -q 'BYTEZ' "$work/etcd-$node.log" || true
    refuse "etcd.env: unknown name" etcd_knows_all
    stop "$node" etcd
    broken_unit "$node" etcd.service 's/^LimitNOFILE/LimitNOFILEE/' "unknown directive"
    broken_unit "$node" etcd.service 's/^Type=notify/Type=notifyy/' "unknown type"
    broken_unit "$node" etcd.service 's/^ExecStart=.*/ExecStart=\/opt\/etcd\/nothing/' "program that does not exist"
  fi
  node=${nodes[0]}
  printf 'vm.swappines = 1\n' >"$work/$node/root/tmp/70-x.conf"
  refuse "sysctl.d: unknown key" sysctl_keys "$node" /tmp/70-x.conf
  printf 'u x\ny\n' >"$work/$node/root/etc/sysusers.d/99-x.conf"
  refuse "sysusers.d: unknown line" quiet systemd-sysusers --root="$work/$node/root" 99-x.conf
  printf 'dd /x 0755 root root\n' >"$work/$node/root/etc/tmpfiles.d/99-x.conf"
  refuse "tmpfiles.d: unknown line" quiet systemd-tmpfiles --root="$work/$node/root" --create 99-x.conf
  check_broken_base
  check_broken_text
}

# The checks that need no server.
check_broken_text() {
  local kept=$rendered
  rendered=$work/text
  mkdir -p "$rendered/n/etc/kafka" "$work/n/root/etc/sysusers.d"
  printf 'a=1 # one\n' >"$rendered/n/etc/kafka/x.properties"
  refuse "text: comment after a value" well_formed n
  printf 'a=1' >"$rendered/n/etc/kafka/x.properties"
  refuse "text: last line without an end" well_formed n
  printf 'a={{ b }}\n' >"$rendered/n/etc/kafka/x.properties"
  refuse "text: unrendered" well_formed n
  printf 'u kafka 814 "x" /\n' >"$work/n/root/etc/sysusers.d/60-x.conf"
  printf 'kafka:x:815:815::/:/bin/false\n' >"$work/n/root/etc/passwd"
  refuse "text: user with another number" user_ids n
  refuse "text: silence broken" quiet echo word
  rendered=$kept
}

refuse_or_run() { # LABEL NODE SERVER STATE MANAGED SED-SCRIPT
  local copy
  copy=$(break_file "$2" "$5" "$6")
  expect "$1" redis_refuses "$2" "/usr/bin/$3" "$4" "$copy"
}

# Files of the role base, where it was rendered.
check_broken_base() {
  local path
  for path in $(python3 "$here/rules.py" validators "$repo/repo-template/roles" "$rendered/$node"); do
    case $path in
    /etc/nftables.conf) broken "nftables.conf: half a rule" "$node" "$path" 's/policy drop/policy drob/' ;;
    /etc/chrony/chrony.conf | /etc/chrony.conf) broken "chrony.conf: unknown directive" "$node" "$path" '1i serverr x' ;;
    /etc/sysctl.d/*) broken "$path: unknown key" "$node" "$path" '1i vm.swappines = 1' ;;
    /etc/logrotate.d/*) broken "$path: unknown word" "$node" "$path" 's/missingok/missingokk/' ;;
    *ca-certificates*) broken "$path: no certificate" "$node" "$path" 's/BEGIN/BEGUN/' ;;
    esac
  done
}
