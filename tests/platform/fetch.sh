# The real servers: what the machine lacks is installed or built once. Sourced by run, while there is a network.

say() { printf '%s\n' "$*"; }

# Packages start their services when they are installed; here nobody wants them.
fetch_packages() {
  local need=() tool package policy=/usr/sbin/policy-rc.d made=
  while read -r tool package; do
    command -v "$tool" >/dev/null || need+=("$package")
  done <<'LIST'
haproxy haproxy
keepalived keepalived
redis-server redis-server
redis-sentinel redis-sentinel
redis-cli redis-tools
nft nftables
chronyd chrony
logrotate logrotate
systemd-analyze systemd
ip iproute2
openssl openssl
java openjdk-17-jdk-headless
mvn maven
LIST
  [ ${#need[@]} -gt 0 ] || return 0
  say "installing ${need[*]} (their services stay stopped)"
  if [ ! -e $policy ]; then
    made=$policy
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  local failed=0
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}" >"$work/apt.log" 2>&1 || failed=1
  [ -z "$made" ] || rm -f "$made"
  [ $failed = 0 ] || { tail -n 20 "$work/apt.log" >&2; return 1; }
}

fetch_kafka() { # -> $kafka: a folder as an unpacked distribution has it
  kafka=$cache/kafka-3.9.0
  if [ ! -e "$kafka/complete" ]; then
    say "fetching Kafka 3.9.0's jars into $kafka"
    rm -rf "$kafka"
    mkdir -p "$kafka/bin"
    mvn -B -q org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -f "$here/kafka/pom.xml" \
      -DincludeScope=runtime -DoutputDirectory="$kafka/libs"
  fi
  local script class
  while read -r script class; do
    cat >"$kafka/bin/$script" <<SCRIPT
#!/bin/bash
# What the distribution's script of this name comes down to; tools live too short to be optimized.
exec java \${KAFKA_HEAP_OPTS:--Xmx256m} \${KAFKA_JVM_PERFORMANCE_OPTS:--XX:TieredStopAtLevel=1 -XX:+UseSerialGC} -Dkafka.logs.dir=\${LOG_DIR:-/tmp} \$KAFKA_LOG4J_OPTS \$KAFKA_OPTS \\
  -cp "\$(dirname "\$0")/../libs/*" $class "\$@"
SCRIPT
    chmod 755 "$kafka/bin/$script"
  done <<'LIST'
kafka-server-start.sh kafka.Kafka
kafka-storage.sh kafka.tools.StorageTool
kafka-topics.sh org.apache.kafka.tools.TopicCommand
kafka-metadata-quorum.sh org.apache.kafka.tools.MetadataQuorumCommand
kafka-reassign-partitions.sh org.apache.kafka.tools.reassign.ReassignPartitionsCommand
LIST
  touch "$kafka/complete"
}

fetch_etcd() { # -> $etcd: a folder with etcd and etcdctl
  etcd=$(CONVERGER_CACHE=$cache "$repo/tools/etcd")
}
