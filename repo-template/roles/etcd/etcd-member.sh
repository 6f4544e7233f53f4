#!/bin/bash
# Membership and leadership of this etcd member; run by converger, safe to run by hand and to repeat.
#   etcd-member yield         hand the leadership on, if this member has it
#   etcd-member add           joining nodes only: have the others list this one, as a learner
#   etcd-member promote       make this learner a voter as soon as it has caught up
#   etcd-member votes         exit 0 if the cluster lists this node as a voter
#   etcd-member remove NAME   strike NAME off the list; nothing to do if it is not on it
#   etcd-member gone NAME     exit 0 if the cluster answers and does not list NAME
set -euo pipefail

name={{ node.name }}
state={{ node.state }}
self=https://{{ node.fqdn }}:2379
peer_url=https://{{ node.fqdn }}:2380
members={% for peer in cluster.nodes %}https://{{ peer.fqdn }}:2379{% if not loop.last %},{% endif %}{% endfor %}

# etcdctl refuses to work when a setting comes both from the environment and from a flag.
unset "${!ETCDCTL_@}"

ctl() { # ENDPOINTS ARG...
  local endpoints=$1
  shift
  /opt/etcd/current/etcdctl --endpoints "$endpoints" --command-timeout=5s \
    --cacert /etc/datalyptica/pki/ca.crt --cert /etc/etcd/tls.pem --key /etc/etcd/tls.pem "$@"
}

# etcd refuses to change its membership until all of it has been connected for five seconds.
patiently() {
  for _ in {1..20}; do
    if "$@"; then return 0; fi
    sleep 1
  done
  return 1
}

# One line each: ID,STATUS,NAME,PEER_URL,CLIENT_URL,LEARNER. A member that never started has no name yet.
listed() { ctl "$members" member list | sed 's/, /,/g'; }

id_of() { # NAME PEER_URL
  listed | awk -F, -v name="$1" -v url="$2" '($3 != "" && $3 == name) || $4 == url { print $1; exit }'
}

# A member that was added and never started is listed by its address alone.
url_of() { # NAME
  case $1 in
{%- for peer in cluster.nodes %}
  {{ peer.name }}) echo https://{{ peer.fqdn }}:2380 ;;
{%- endfor %}
  esac
}

votes() {
  listed | awk -F, -v url="$peer_url" '$4 == url && $6 == "false" { found = 1 } END { exit !found }'
}

# Each looks before it asks: an answer that was lost is no failure.
add() {
  local id
  id=$(id_of "$name" "$peer_url") || return
  [ -n "$id" ] || ctl "$members" member add "$name" --learner --peer-urls "$peer_url"
}

promote() {
  local id
  if votes; then return 0; fi
  id=$(id_of "$name" "$peer_url") || return
  # Also refused while the learner is behind its leader.
  [ -n "$id" ] && ctl "$members" member promote "$id"
}

remove() { # NAME
  local id
  id=$(id_of "$1" "$(url_of "$1")") || return
  [ -z "$id" ] || ctl "$members" member remove "$id"
}

# One line for each endpoint that answers: ENDPOINT,ID,VERSION,SIZE,LEADER,LEARNER,...
status() { ctl "$1" endpoint status 2>/dev/null | sed 's/, /,/g' || true; }

case ${1-} in
yield)
  [ "$(status "$self" | cut -d, -f5)" = true ] || { echo "$name does not lead"; exit 0; }
  heir=$(status "$members" | awk -F, '$5 == "false" && $6 == "false" { print $2; exit }')
  [ -n "$heir" ] || { echo "no other voter answers" >&2; exit 1; }
  # Only the leader itself accepts this order.
  ctl "$self" move-leader "$heir"
  ;;
add)
  [ "$state" = joining ] || { echo "$name is not joining"; exit 0; }
  patiently add
  ;;
votes)
  votes
  ;;
promote)
  patiently promote
  ;;
remove)
  patiently remove "${2:?name of the member}"
  ;;
gone)
  id=$(id_of "${2:?name of the member}" "$(url_of "$2")")
  [ -z "$id" ]
  ;;
*)
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
