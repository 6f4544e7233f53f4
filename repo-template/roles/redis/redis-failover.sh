#!/bin/bash
# If the Redis on this node is the master, have Sentinel make another one master, and wait until that is so.
set -euo pipefail

address={{ node.addresses.app }}
REDISCLI_AUTH=$(</etc/redis/sentinel-password)
export REDISCLI_AUTH

sentinel() {
  redis-cli -h "$address" -p 26379 --tls --cacert /etc/datalyptica/pki/ca.crt \
    --cert /etc/redis/tls.pem --key /etc/redis/tls.pem sentinel "$@"
}

# One value per line. Sentinel may watch several masters; the first one is ours.
name=$(sentinel masters | awk '$0 == "name" && !name { getline name } END { print name }')
[ -n "$name" ] || { echo "Sentinel watches no master" >&2; exit 1; }
master() { sentinel get-master-addr-by-name "$name" | head -n 1; }

[ "$(master)" = "$address" ] || { echo "$address is not the master"; exit 0; }
answer=$(sentinel failover "$name")
[ "$answer" = OK ] || { echo "Sentinel refuses: $answer" >&2; exit 1; }
for _ in {1..60}; do
  sleep 1
  now=$(master)
  [ "$now" = "$address" ] || { echo "the master is $now"; exit 0; }
done
echo "$address is still the master after a minute" >&2
exit 1
