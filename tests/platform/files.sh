# Checks that start nothing. Sourced by run.

ours() { # NODE: files of the roles that are tested here, below the node's folder
  (cd "$rendered/$1" && find etc/etcd etc/kafka etc/redis etc/redis-sentinel etc/haproxy etc/keepalived etc/sysctl.d \
    etc/sysusers.d etc/tmpfiles.d etc/systemd/system var/lib usr/local -type f 2>/dev/null)
}

well_formed() { # NODE
  local file bad=0
  while IFS= read -r file; do
    local path=$rendered/$1/$file
    ! grep -q '^«secret:[^»]*»$' "$path" || [ "$(wc -l <"$path")" -gt 1 ] || continue
    [ -z "$(tail -c 1 "$path")" ] || { echo "$file: the last line has no end"; bad=1; }
    ! grep -nE '\{\{|\{%' "$path" || { echo "$file: unrendered"; bad=1; }
    case $file in
    # After a value a comment is part of the value.
    *.properties | *.env) ! grep -nE '^[^#]*[^[:space:]#][[:space:]]+#' "$path" || { echo "$file: comment after a value"; bad=1; } ;;
    esac
  done < <(ours "$1")
  return $bad
}

user_ids() { # NODE: the numbers that sysusers.d asks for are the ones that were given
  local kind name id rest
  while read -r kind name id rest; do
    [ "$kind" = u ] || continue
    grep -q "^$name:[^:]*:$id:" "$work/$1/root/etc/passwd" || { echo "$name is not $id"; return 1; }
  done < <(cat "$work/$1"/root/etc/sysusers.d/60-*.conf)
}

sysctl_keys() { # NODE FILE: known to this kernel; nothing is set
  chroot "$work/$1/root" sysctl --dry-run --load "$2"
}

check_files() { # NODE
  local file
  expect "$1: every file ends with a newline, no comment stands after a value" well_formed "$1"
  expect "$1: users have their numbers" user_ids "$1"
  for file in $(cd "$work/$1/root" && ls etc/sysctl.d/7*.conf 2>/dev/null); do
    expect "$1: /$file" sysctl_keys "$1" "/$file"
  done
}

judge() { # NODE PATH [CANDIDATE]
  in_net "$1" python3 "$here/rules.py" validate "$repo/repo-template/roles" "$1" "$2" "$work/$1/root" ${3-}
}

check_validators() { # NODE
  local path
  for path in $(python3 "$here/rules.py" validators "$repo/repo-template/roles" "$rendered/$1"); do
    expect "$1: $path" judge "$1" "$path"
  done
  # As on a node that is being set up: the files of one unit are validated before any of them is live.
  local pem=$work/$1/root/etc/haproxy/certs/platform.pem
  [ -e "$pem" ] || return 0
  mv "$pem" "$pem.kept"
  expect "$1: haproxy.cfg before its certificate is there" judge "$1" /etc/haproxy/haproxy.cfg
  mv "$pem.kept" "$pem"
}

# Its exit code is 0 for an unknown key: what it says decides.
verify_unit() { # NODE UNIT
  local said
  said=$(chroot "$work/$1/root" systemd-analyze verify --man=no "$2" 2>&1 | grep -F "${2%.*}" || true)
  [ -z "$said" ] || { printf '%s\n' "$said"; return 1; }
}

check_units() { # NODE
  local unit
  for unit in $(cd "$rendered/$1/etc/systemd/system" && for u in *.service *.service.d; do echo "${u%.d}"; done | sort -u); do
    case $unit in
    etcd.service | kafka.service | redis*.service | haproxy.service | keepalived.service) expect "$1: $unit" verify_unit "$1" "$unit" ;;
    esac
  done
}
