# The servers themselves, started from what was rendered. Sourced by run.

with() { # FILE: nodes that have it
  local node
  for node in "${nodes[@]}"; do [ ! -e "$rendered/$node/$1" ] || echo "$node"; done
}

# Set in this shell, so that its pid is the server's and is known to the clean-up.
start() { # NODE USER LOG COMMAND...
  local node=$1 user=$2 log=$3
  shift 3
  on "$node" "$user" "$@" >"$log" 2>&1 &
  started+=($!)
  pid_of["$node/$user"]=$!
}
declare -A pid_of=()

stop() { # NODE USER: politely, and wait
  local pid=${pid_of["$1/$2"]} asked
  # Asked again now and then: Redis does not go while it writes its first AOF, and forgets that it was asked.
  for asked in {1..6}; do
    kill -TERM "$pid" 2>/dev/null || true
    gone "$pid" && break
  done
  [ "$asked" != 6 ] || gone "$pid" || { printf '%s\n' "still there after three minutes" >"$work/out"; fail "$1: $2's server stops when told to" "$work/out"; kill -KILL "$pid"; }
  wait "$pid" 2>/dev/null || true
}
# As a power cut.
cut_off() { # NODE USER
  local pid=${pid_of["$1/$2"]}
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}
gone() { # PID: within half a minute
  for _ in {1..150}; do
    [ -e "/proc/$1" ] && [ "$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null)" != Z ] || return 0
    sleep 0.2
  done
  return 1
}

http() { # URL: body of a 200
  curl -fsS --max-time 3 "$@"
}

# ---- etcd ----

# As systemd reads EnvironmentFile=.
etcd_as_unit='set -a; . /etc/etcd/etcd.env; . /etc/etcd/bootstrap.env; exec /opt/etcd/current/etcd'

etcd_leads() { # NODE
  on "$1" root bash -c '. /etc/etcd/etcd.env; /opt/etcd/current/etcdctl --cacert "$ETCD_TRUSTED_CA_FILE" --cert "$ETCD_CERT_FILE" \
    --key "$ETCD_KEY_FILE" --endpoints "$ETCD_ADVERTISE_CLIENT_URLS" endpoint status' | awk -F', ' '{ exit $5 != "true" }'
}
etcd_leader() {
  local node
  for node in "${members[@]}"; do if (etcd_leads "$node"); then echo "$node"; return 0; fi; done
  return 1
}
etcd_moved() { [ "$(etcd_leader)" != "$1" ]; }
etcd_knows_all() { ! grep -E 'unrecognized environment variable|conflicting environment' "$work"/etcd-*.log; }

check_etcd() {
  local members node leader
  mapfile -t members < <(with etc/etcd/etcd.env)
  [ ${#members[@]} -gt 0 ] || return 0
  for node in "${members[@]}"; do start "$node" etcd "$work/etcd-$node.log" bash -c "$etcd_as_unit"; done
  for node in "${members[@]}"; do
    expect "$node: etcd is healthy at its metrics address" soon 30 \
      http "$(sed -n 's/^ETCD_LISTEN_METRICS_URLS=//p' "$rendered/$node/etc/etcd/etcd.env")/health"
  done
  expect "etcd: knows all of its settings" etcd_knows_all
  expect "etcd: its log file is for the log shipper's group" chroot "$work/${members[0]}/root" bash -c \
    '[ "$(stat -c "%a %U %G" /var/log/datalyptica/etcd/etcd.log)" = "640 etcd adm" ] && [ -s /var/log/datalyptica/etcd/etcd.log ]'
  if leader=$(etcd_leader) && [ ${#members[@]} -gt 1 ]; then
    expect "$leader: etcd-member yield hands the leadership on" on "$leader" root /usr/local/libexec/datalyptica/etcd-member yield
    expect "$leader: another member leads" soon 10 etcd_moved "$leader"
    expect "$leader: a second yield has nothing to do" on "$leader" root /usr/local/libexec/datalyptica/etcd-member yield
  fi
  expect "${members[0]}: etcd-member votes" on "${members[0]}" root /usr/local/libexec/datalyptica/etcd-member votes
  [ ${#members[@]} -lt 3 ] || check_etcd_membership
  for node in "${members[@]}"; do stop "$node" etcd; done
}

# The last member goes for good and comes back under its old name, with an empty disk.
check_etcd_membership() {
  local last=${members[-1]} first=${members[0]} tool=/usr/local/libexec/datalyptica/etcd-member
  stop "$last" etcd
  expect "$last: etcd-member remove" on "$first" root $tool remove "$last"
  refuse "$last: is no voter any more" on "$last" root $tool votes
  rm -rf "$work/$last/root/data/etcd/member"
  sed -i 's/^state=.*/state=joining/' "$work/$last/root$tool"
  sed -i 's/^ETCD_INITIAL_CLUSTER_STATE=.*/ETCD_INITIAL_CLUSTER_STATE=existing/' "$work/$last/root/etc/etcd/bootstrap.env"
  expect "$last: etcd-member add" on "$last" root $tool add
  expect "$last: etcd-member add, again" on "$last" root $tool add
  start "$last" etcd "$work/etcd-$last.log" bash -c "$etcd_as_unit"
  expect "$last: etcd-member promote" on "$last" root $tool promote
  expect "$last: votes again" on "$last" root $tool votes
}

# ---- Kafka ----

kafka_as_unit='umask 027; set -a; . /etc/kafka/kafka.env; KAFKA_HEAP_OPTS=-Xmx384m; exec /opt/kafka/current/bin/kafka-server-start.sh /etc/kafka/server.properties'
bin=/opt/kafka/current/bin

kafka_property() { sed -n "s/^$2=//p" "$rendered/$1/etc/kafka/server.properties"; }
kafka_address() { kafka_property "$1" advertised.listeners | grep -oP 'CLIENT://\K[^,]+'; }
kafka_topics() { on "$1" kafka $bin/kafka-topics.sh --bootstrap-server "$(kafka_address "$1")" --command-config /etc/kafka/client-admin.properties "${@:2}"; }
kafka_quorum() { on "$1" kafka $bin/kafka-metadata-quorum.sh --bootstrap-server "$(kafka_address "$1")" --command-config /etc/kafka/client-admin.properties describe --status; }

# Kafka passes over a name that it does not know.
kafka_names() { # FILE...
  [ -s "$work/kafka-names" ] || (
    cd "$work"
    cat >Names.java <<'JAVA'
public class Names {
    public static void main(String[] args) {
        scala.collection.Iterator<String> names = kafka.server.KafkaConfig.configNames().iterator();
        while (names.hasNext()) System.out.println(names.next());
    }
}
JAVA
    java -cp "$kafka/libs/*" Names.java >names
    # The authorizer reads its own.
    printf '%s\n' super.users allow.everyone.if.no.acl.found >>names
    mv names kafka-names
  )
  local file key bad=0
  for file in "$@"; do
    for key in $(grep -oP '^[^#=\s]+(?==)' "$file"); do
      grep -qxF "$key" "$work/kafka-names" || { echo "$file: Kafka has no $key"; bad=1; }
    done
  done
  return $bad
}

check_kafka() {
  local all node brokers=() voter member=/usr/local/libexec/datalyptica/kafka-member
  mapfile -t all < <(with etc/kafka/server.properties)
  [ ${#all[@]} -gt 0 ] || return 0
  for node in "${all[@]}"; do
    expect "$node: Kafka knows every name in server.properties" kafka_names "$rendered/$node/etc/kafka/server.properties"
  done
  # The voters and one that is a broker only.
  for node in "${all[@]}"; do
    [ "$(kafka_property "$node" process.roles)" = broker,controller ] && brokers+=("$node")
  done
  for node in "${all[@]}"; do
    [ "$(kafka_property "$node" process.roles)" = broker ] && { brokers+=("$node"); break; }
  done
  for node in "${brokers[@]}"; do
    expect "$node: the storage is formatted as the action does it" on "$node" kafka $member format
    expect "$node: which makes what the action says" test -s "$work/$node/root/data/kafka/logs/meta.properties"
  done
  expect "${brokers[0]}: server.properties, once formatted" judge "${brokers[0]}" /etc/kafka/server.properties
  for node in "${brokers[@]}"; do start "$node" kafka "$work/kafka-$node.log" bash -c "$kafka_as_unit"; done
  voter=${brokers[0]}
  expect "$voter: the voters have a leader" soon 90 kafka_quorum "$voter"
  for node in "${brokers[@]}"; do
    expect "$node: the broker is up" soon 60 grep -q 'Kafka Server started' "$work/$node/root/var/log/datalyptica/kafka/server.log"
  done
  expect "$voter: a topic with three replicas" soon 30 kafka_topics "$voter" --create --if-not-exists --topic t1 --partitions 8 --replication-factor 3
  expect "${brokers[-1]}: no partition lacks a replica" soon 30 no_output kafka_topics "${brokers[-1]}" --describe --under-replicated-partitions
  for node in "${brokers[@]}"; do expect "$node: kafka-member votes" on "$node" kafka $member votes; done
  expect "$voter: a broker only is no voter" on "$voter" kafka $member gone "${brokers[-1]}"
  refuse "$voter: one that votes is not gone" on "${brokers[-1]}" kafka $member gone "$voter"
  refuse "$voter: kafka-member drain, while there are replicas" on "$voter" kafka $member drain
  expect "$voter: logs are for the log shipper's group" bash -c "[ \"\$(stat -c '%a' '$work/$voter/root/var/log/datalyptica/kafka/server.log')\" = 640 ]"
  # The broker, then a voter, while a quorum is left; without one a broker waits minutes for somebody to take leave of.
  for node in "${brokers[-1]}" "$voter"; do stop "$node" kafka; done
  for node in "${brokers[@]:1:${#brokers[@]}-2}"; do cut_off "$node" kafka; done
}

no_output() { local said; said=$("$@") && [ -z "$said" ]; }

# ---- Redis and Sentinel ----

redis() { # NODE PORT PASSWORD ARG...
  REDISCLI_AUTH=$3 on "$1" root redis-cli -h "$(redis_address "$1")" -p "$2" --tls --cacert /etc/datalyptica/pki/ca.crt \
    --cert /etc/redis/tls.pem --key /etc/redis/tls.pem "${@:4}"
}
redis_address() { sed -n 's/^replica-announce-ip //p' "$rendered/$1/etc/redis/managed.conf"; }
redis_role() { redis "$1" 6379 test-redis-password info replication | tr -d '\r' | grep -q "^role:$2\$"; }
redis_linked() { redis "$1" 6379 test-redis-password info replication | tr -d '\r' | grep -q '^master_link_status:up$'; }
redis_master_of() { redis "$1" 26379 test-sentinel-password sentinel get-master-addr-by-name "$master_name" | head -n 1; }
redis_setting() { [ "$(redis "$1" 6379 test-redis-password config get "$2" | tail -n 1)" = "$3" ]; }
sentinel_quorum() { redis "$1" 26379 test-sentinel-password sentinel ckquorum "$master_name" | grep -q "^OK $2 usable"; }
sentinel_setting() { redis "$1" 26379 test-sentinel-password sentinel master "$master_name" | grep -A1 "^$2\$" | grep -qx "$3"; }

redis_start() { # NODE, as its unit does
  start "$1" redis "$work/redis-$1.log" bash -c \
    'umask 027; exec /usr/bin/redis-server /var/lib/redis/state.conf --include /etc/redis/managed.conf --daemonize no'
}
sentinel_start() {
  on "$1" redis bash -c \
    'umask 027; exec /usr/bin/redis-sentinel /var/lib/redis-sentinel/sentinel.conf --include /etc/redis-sentinel/managed.conf --daemonize no' \
    >"$work/sentinel-$1.log" 2>&1 &
  started+=($!)
  pid_of["$1/sentinel"]=$!
}

check_redis() {
  local all node master replica master_name old now
  mapfile -t all < <(with etc/redis/managed.conf)
  [ ${#all[@]} -gt 0 ] || return 0
  for node in "${all[@]}"; do redis_start "$node"; done
  master=
  for node in "${all[@]}"; do
    expect "$node: Redis answers" soon 20 redis "$node" 6379 test-redis-password ping
    if grep -q '^replicaof' "$rendered/$node/var/lib/redis/state.conf"; then
      replica=$node
      expect "$node: is a replica with a link to its master" soon 30 redis_linked "$node"
    else
      master=$node
    fi
  done
  expect "$master: is the only master" redis_role "$master" master
  [ ${#all[@]} -gt 1 ] || return 0
  expect "$master: takes writes" soon 20 redis "$master" 6379 test-redis-password set k v
  [ -e "$rendered/$master/etc/redis-sentinel/managed.conf" ] || return 0

  master_name=$(sed -n 's/^sentinel monitor \(\S*\) .*/\1/p' "$rendered/$master/var/lib/redis-sentinel/sentinel.conf")
  for node in "${all[@]}"; do sentinel_start "$node"; done
  for node in "${all[@]}"; do
    expect "$node: Sentinel sees a quorum of ${#all[@]}" soon 30 sentinel_quorum "$node" ${#all[@]}
  done
  expect "$replica: redis-failover has nothing to do on a replica" on "$replica" root /usr/local/libexec/datalyptica/redis-failover
  expect "$master: redis-failover makes another one master" on "$master" root /usr/local/libexec/datalyptica/redis-failover
  now=$(redis_master_of "$replica")
  expect "$master: is a replica now" soon 30 redis_role "$master" slave
  expect "$master: and has caught up" soon 30 redis_linked "$master"

  # What a failover wrote into state.conf must neither shadow managed.conf nor be lost.
  stop "$master" redis
  sed -i 's/^maxmemory .*/maxmemory 77mb/' "$work/$master/root/etc/redis/managed.conf"
  redis_start "$master"
  expect "$master: comes back as a replica" soon 20 redis_role "$master" slave
  expect "$master: with the new value from managed.conf" redis_setting "$master" maxmemory $((77 * 1024 * 1024))
  kill -TERM "${pid_of["$replica/sentinel"]}"
  wait "${pid_of["$replica/sentinel"]}" || true
  sed -i 's/^\(sentinel down-after-milliseconds \S*\) .*/\1 4321/' "$work/$replica/root/etc/redis-sentinel/managed.conf"
  expect "$replica: Sentinel has written its own file" grep -q '^sentinel known-replica' "$work/$replica/root/var/lib/redis-sentinel/sentinel.conf"
  sentinel_start "$replica"
  expect "$replica: Sentinel takes a new value from managed.conf" soon 20 sentinel_setting "$replica" down-after-milliseconds 4321
  expect "$replica: and still knows who is master" bash -c "[ '$(redis_master_of "$replica")' = '$now' ]"
  for node in "${all[@]}"; do
    stop "$node" redis
    stop "$node" sentinel
  done
}

# ---- HAProxy ----

status_is() { # CODE CURL-ARG...
  local code=$1
  shift
  [ "$(curl -sk --max-time 3 -o /dev/null -w '%{http_code}' "$@")" = "$code" ]
}

haproxy_start() { # NODE
  local cfg=$work/$1/root/etc/haproxy/haproxy.cfg limit
  # The connections that this machine's limit allows; `-c` does not look at that.
  limit=$(($(ulimit -Hn) / 2 - 1000))
  sed "s/^    maxconn .*/    maxconn $((limit < 4000 ? limit : 4000))/" "$cfg" >"$work/$1/root/tmp/haproxy.cfg"
  # The kernel settings that concern this node's network only.
  in_net "$1" sysctl -q --load --pattern '^net\.' "$work/$1/root/etc/sysctl.d/70-haproxy.conf"
  start "$1" root "$work/haproxy-$1.log" /usr/sbin/haproxy -Ws -f /tmp/haproxy.cfg
}

check_haproxy() {
  local node cfg mgmt vip domain log balancers
  mapfile -t balancers < <(with etc/haproxy/haproxy.cfg)
  [ ${#balancers[@]} -gt 0 ] || return 0
  node=${balancers[0]}
  cfg=$work/$node/root/etc/haproxy/haproxy.cfg
  log=$work/haproxy-$node.log
  haproxy_start "$node"
  mgmt=$(grep -oP '^\s+bind \K[\d.]+(?=:8404)' "$cfg")
  vip=$(grep -oP '^\s+bind \K[\d.]+(?=:443)' "$cfg")
  in_net "$node" ip addr add "$vip/32" dev lo
  ip route add "$vip/32" dev v${node_index["$node"]}
  domain=$(grep -oP 'm str auth\.\K\S+' "$cfg" | head -n 1)
  expect "$node: HAProxy answers keepalived's question" soon 10 status_is 200 "http://$mgmt:8404/healthz"
  expect "$node: keepalived's check says yes" on "$node" keepalived_script /etc/keepalived/check-haproxy
  touch "$work/$node/root/run/datalyptica/lb-drain"
  refuse "$node: and no while the node is being drained" on "$node" keepalived_script /etc/keepalived/check-haproxy
  rm "$work/$node/root/run/datalyptica/lb-drain"
  expect "$node: metrics" status_is 200 "http://$mgmt:8404/metrics"
  expect "$node: statistics want the password" status_is 401 "http://$mgmt:8404/stats"
  expect "$node: and take it" status_is 200 -u converger:test-haproxy-stats-password "http://$mgmt:8404/stats"
  expect "$node: an old address is redirected" status_is 302 --resolve "datalyptica.$domain:443:$vip" "https://datalyptica.$domain/grafana"
  expect "$node: an unknown host is told so" status_is 421 --resolve "x.$domain:443:$vip" "https://x.$domain/"
  expect "$node: a known one without a server is 503" soon 20 status_is 503 --resolve "auth.$domain:443:$vip" "https://auth.$domain/"
  expect "$node: requests are logged" grep -q 'applications' "$log"
  kill -USR2 "${pid_of["$node/root"]}"
  expect "$node: a reload keeps it answering" soon 10 status_is 200 "http://$mgmt:8404/healthz"
  stop "$node" root
}

# ---- Keepalived ----

holds() { in_net "$1" ip -4 -o addr show | grep -q " $2/32 "; }
only_holder() { # NODE OTHER ADDRESS
  holds "$1" "$3" && ! holds "$2" "$3"
}

# Two balancers on one wire for each network: their adverts must not have passed a router.
check_keepalived() {
  local pair one two node interface address external internal began
  mapfile -t pair < <(with etc/keepalived/keepalived.conf | head -n 2)
  [ ${#pair[@]} = 2 ] || return 0
  one=${pair[0]} two=${pair[1]}
  [ "$(grep -c '^vrrp_instance' "$rendered/$one/etc/keepalived/keepalived.conf")" = 2 ] || return 0
  mapfile -t address < <(grep -oP '^\s+\K[\d.]+(?= dev )' "$rendered/$one/etc/keepalived/keepalived.conf")
  external=${address[0]} internal=${address[1]}
  for node in "$one" "$two"; do
    for address in "$external" "$internal"; do in_net "$node" ip addr del "$address/32" dev lo 2>/dev/null || true; done
    # The management address stays; the others move to wires of their own.
    for address in $(grep -oP '^\s+bind \K[\d.]+(?=:8404)' "$rendered/$node/etc/haproxy/haproxy.cfg"); do
      in_net "$node" ip addr add "$address/32" dev lo 2>/dev/null || true
    done
  done
  for interface in $(grep -oP '^\s+interface \K\S+' "$rendered/$one/etc/keepalived/keepalived.conf" | sort -u); do
    for node in "$one" "$two"; do in_net "$node" ip link del "$interface"; done
    ip link add "$interface" netns "${net_of[$one]}" type veth peer name "$interface" netns "${net_of[$two]}"
    for node in "$one" "$two"; do
      address=$(awk -v want="$interface" '$1 == "interface" { at = $2 } $1 == "unicast_src_ip" && at == want { print $2 }' \
        "$rendered/$node/etc/keepalived/keepalived.conf" | sort -u)
      in_net "$node" ip addr add "$address/24" dev "$interface"
      in_net "$node" ip link set "$interface" up
    done
  done
  for node in "$one" "$two"; do
    haproxy_start "$node"
    # Half a minute of patience is right for a fleet and too long for a test.
    sed -i 's/preempt_delay .*/preempt_delay 2/' "$work/$node/root/etc/keepalived/keepalived.conf"
    on "$node" root /usr/sbin/keepalived --dont-fork --log-console --log-detail >"$work/keepalived-$node.log" 2>&1 &
    started+=($!)
    pid_of["$node/keepalived"]=$!
  done
  expect "$one: holds the external address alone" soon 20 only_holder "$one" "$two" "$external"
  expect "$two: holds the internal address alone" soon 20 only_holder "$two" "$one" "$internal"
  expect "$one: lb-drain gives it away" on "$one" root /usr/local/libexec/datalyptica/lb-drain on
  expect "$two: has it" only_holder "$two" "$one" "$external"
  expect "$one: lb-drain takes it back" on "$one" root /usr/local/libexec/datalyptica/lb-drain off
  expect "$one: has it" soon 20 only_holder "$one" "$two" "$external"
  kill -KILL "${pid_of["$one/root"]}"
  wait "${pid_of["$one/root"]}" 2>/dev/null || true
  expect "$two: has it when HAProxy died on $one" soon 10 only_holder "$two" "$one" "$external"
  haproxy_start "$one"
  expect "$one: has it again" soon 20 only_holder "$one" "$two" "$external"
  # As if the node had been switched off: the other one hears nothing any more.
  in_net "$two" nft -f - <<'RULES'
table ip silence {
    chain input {
        type filter hook input priority filter;
        ip protocol 112 drop
    }
}
RULES
  began=$(date +%s%N)
  expect "$two: takes the address when it hears nothing" soon 5 holds "$two" "$external"
  say "        after $((($(date +%s%N) - began) / 1000000)) ms"
  for node in "$one" "$two"; do
    stop "$node" keepalived
    stop "$node" root
  done
}
