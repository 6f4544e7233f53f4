#!/bin/bash
# Membership of this Kafka node; run by converger, safe to run by hand and to repeat. As user kafka.
#   kafka-member format        make the empty storage one of this cluster; nothing to do if it is formatted
#   kafka-member add           make this controller a voter as soon as it has caught up
#   kafka-member votes         exit 0 if the controllers list this node's storage as a voter, or it is a broker only
#   kafka-member drain         exit 0 if this broker has no replicas; else say which ones, and fail: moving them is yours
#   kafka-member remove NAME   strike the stopped voter NAME off the list; nothing to do if it is not on it
#   kafka-member gone NAME     exit 0 if no voter on the list is NAME
set -euo pipefail

name={{ node.name }}
state={{ node.state }}
cluster_id={{ vars.kafka.cluster_id }}
bin=/opt/kafka/current/bin
etc=/etc/kafka
storage=/data/kafka/logs

# One line each: NAME ID FQDN STATE voter|broker.
nodes() {
  cat <<'NODES'
{%- for peer in cluster.nodes %}
{{ peer.name }} {{ peer.id }} {{ peer.fqdn }} {{ peer.state }} {% if peer.name in cluster.groups.controllers.members %}voter{% else %}broker{% endif %}
{%- endfor %}
NODES
}

field() { # NAME NUMBER
  nodes | awk -v name="$1" -v number="$2" '$1 == name { print $number; found = 1 } END { exit !found }'
}

# Who stays and is not NAME: nobody is asked about itself, it may be stopped.
others() { # NAME
  nodes | awk -v name="$1" '$1 != name && $4 == "active" { printf "%s%s:9092", comma, $3; comma = "," }'
}

controllers() { # NAME ARG...: what the others say
  local others
  others=$(others "$1")
  shift
  $bin/kafka-metadata-quorum.sh --bootstrap-server "$others" --command-config $etc/client-admin.properties "$@"
}

# Directory ids of the voters that are NAME: one, or none. The table's columns are found by their names.
listed() { # NAME
  local id table
  id=$(field "$1" 2) || return
  table=$(controllers "$1" describe --replication) || return
  awk -v id="$id" '
    $1 == "NodeId" { for (i = 1; i <= NF; i++) at[$i] = i; next }
    ("Status" in at) && $at["NodeId"] == id && $at["Status"] ~ /^(Leader|Follower)$/ { print $at["DirectoryId"] }
    END { exit !("DirectoryId" in at) }' <<<"$table"
}

own_directory() { sed -n 's/^directory\.id=//p' $storage/meta.properties; }

# The voters of the first hour all have to know each other's storage: an id that everybody can tell, and which no other
# node ever gets. Storage that is formatted later has one by chance.
first_directory() { # ID
  printf '%s%010dA' "${cluster_id:0:11}" "$1"
}

first_voters() {
  local peer id fqdn state role comma=
  while read -r peer id fqdn state role; do
    [ "$role/$state" = voter/active ] || continue
    printf '%s%s@%s:9093:%s' "$comma" "$id" "$fqdn" "$(first_directory "$id")"
    comma=,
  done < <(nodes)
}

strike() { # NAME
  local directory
  directory=$(listed "$1") || return
  [ -n "$directory" ] || { echo "$1 is not listed"; return 0; }
  controllers "$1" remove-controller --controller-id "$(field "$1" 2)" --controller-directory-id "$directory"
}

# A controller that has not caught up yet is refused, and so is a change while another one is under way.
patiently() {
  for _ in {1..20}; do
    if "$@"; then return 0; fi
    sleep 3
  done
  return 1
}

add() {
  local directory own
  directory=$(listed "$name") || return
  own=$(own_directory) || return
  [ "$directory" != "$own" ] || return 0
  # This node before its disk was replaced: that one does not come back, and no two may have one number.
  [ -z "$directory" ] || strike "$name" || return
  # The tool wants to read the controller's own properties and the client's from one file.
  $bin/kafka-metadata-quorum.sh --bootstrap-server "$(others "$name")" \
    --command-config <(cat $etc/server.properties $etc/client-admin.properties) add-controller
}

case ${1-} in
format)
  if [ "$(field "$name" 5)" = broker ] || [ "$state" = joining ]; then
    voters=--no-initial-controllers
  else
    voters=--initial-controllers=$(first_voters)
  fi
  # Without --ignore-formatted: storage that was formatted for another cluster is refused, not adopted.
  [ -e $storage/meta.properties ] ||
    $bin/kafka-storage.sh format --cluster-id "$cluster_id" --config $etc/server.properties "$voters"
  ;;
add)
  [ "$(field "$name" 5)" = voter ] || { echo "$name is a broker only"; exit 0; }
  patiently add
  ;;
votes)
  [ "$(field "$name" 5)" = voter ] || exit 0
  directory=$(listed "$name")
  own=$(own_directory)
  [ "$directory" = "$own" ]
  ;;
drain)
  table=$($bin/kafka-topics.sh --bootstrap-server "$(others "$name")" --command-config $etc/client-admin.properties --describe)
  held=$(awk -F'\t' -v id="$(field "$name" 2)" '
    { topic = partition = replicas = ""
      for (i = 1; i <= NF; i++) { split($i, part, ": "); if (part[1] == "Topic") topic = part[2]
        if (part[1] == "Partition") partition = part[2]; if (part[1] == "Replicas") replicas = part[2] }
      if (("," replicas ",") ~ ("," id ",")) print topic "-" partition }' <<<"$table")
  [ -n "$held" ] || exit 0
  count=$(wc -l <<<"$held")
  some=$(head -n 10 <<<"$held" | paste -sd' ')
  [ "$count" -le 10 ] || some+=" …"
  echo "$name has replicas of $count partitions ($some): move them to other brokers first, with kafka-reassign-partitions.sh" >&2
  exit 1
  ;;
remove)
  patiently strike "${2:?name of the voter}"
  ;;
gone)
  directory=$(listed "${2:?name of the voter}")
  [ -z "$directory" ]
  ;;
*)
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
