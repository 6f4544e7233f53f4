"""What the roles' manifests say about the files that were rendered.

    rules.py attributes ROLES NODE_DIR            lines: OWNER GROUP MODE PATH
    rules.py validators ROLES NODE_DIR            lines: PATH
    rules.py validate ROLES NODE PATH ROOT [CANDIDATE]
        runs the manifest's own validator on PATH inside ROOT; exit 0 if the manifest accepts the file
"""
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path


def files(roles):
    for manifest in sorted(Path(roles).glob("*/role.toml")):
        for entry in tomllib.loads(manifest.read_text()).get("file", []):
            yield entry


def mode(entry):
    return entry.get("mode") or ("0600" if "secret" in entry else "0644")


def rendered(roles, node_dir):
    """One entry for each path: those for another OS family have other paths or were not rendered."""
    return {e["path"]: e for e in files(roles) if (Path(node_dir) / e["path"].lstrip("/")).is_file()}


def validate(roles, node, path, root, candidate):
    rule = next(e["validate"] for e in files(roles) if e["path"] == path and "validate" in e)
    argv = [a.replace("{}", candidate).replace("{{ node.name }}", node) for a in rule["run"]]
    user = rule.get("user") or "nobody"
    done = subprocess.run(
        ["chroot", root, "setpriv", f"--reuid={user}", f"--regid={group_of(root, user)}", "--clear-groups", "--"] + argv,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120,
        stdin=subprocess.DEVNULL,
    )
    lines = [l for l in done.stdout.splitlines() if not any(re.search(i, l) for i in rule.get("ignore", []))]
    bad = [l for l in lines if any(re.search(f, l) for f in rule.get("fail_on", []))]
    # As a shell says it: ended by signal n is 128 + n.
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    accepted = code in rule.get("ok_exit", [0]) and not bad
    print(f"exit {code}" + (f", refused for: {bad[0]}" if bad else ""))
    print(done.stdout, end="")
    return 0 if accepted else 1


def group_of(root, user):
    for line in Path(root, "etc/passwd").read_text().splitlines():
        name, _, _, gid, *_ = line.split(":")
        if name == user:
            return gid
    sys.exit(f"no user {user} in {root}")


match sys.argv[1:]:
    case ["attributes", roles, node_dir]:
        for path, e in rendered(roles, node_dir).items():
            print(e.get("owner", "root"), e.get("group", "root"), mode(e), path)
    case ["validators", roles, node_dir]:
        print("\n".join(p for p, e in rendered(roles, node_dir).items() if "validate" in e))
    case ["validate", roles, node, path, root, *rest]:
        sys.exit(validate(roles, node, path, root, rest[0] if rest else path))
    case _:
        sys.exit(__doc__)
