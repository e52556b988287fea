#!/bin/sh
# Installs the agent as a systemd service on Debian or Raspberry Pi OS; run again to upgrade.
#
#   sudo deploy/install.sh              from a checkout of the repository
#   sudo deploy/install.sh --uninstall  removes the program, keeps configuration and data
#
# /opt/edge-agent/venv     the program, in a virtual environment of its own (PEP 668 is respected)
# /opt/edge-agent/models   the bundles that ship with it
# /etc/edge-agent          config.yaml (never overwritten), secrets.env (passwords, mode 0600)
# /var/lib/edge-agent      the database, owned by the user edge-agent
#
# PREFIX, PYTHON and PIP_ARGS may be set in the environment, for example PIP_ARGS='--no-index --find-links wheels'.
set -eu

prefix=${PREFIX:-/opt/edge-agent}
python=${PYTHON:-python3}
config=/etc/edge-agent
state=/var/lib/edge-agent
unit=/etc/systemd/system/edge-agent.service
completion=/usr/local/share/bash-completion/completions/edge-agent
here=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "edge-agent: $*"; }
fail() { echo "edge-agent: $*" >&2; exit 1; }
# In a container or a bare root systemd is not running; files are laid out all the same.
systemd_runs() { [ -d /run/systemd/system ]; }

[ "$(id -u)" = 0 ] || fail "run as root: sudo $0 $*"

case "${1:-}" in
--uninstall)
    if systemd_runs; then systemctl disable --now edge-agent.service 2>/dev/null || say "was not enabled"; fi
    rm -f "$unit" "$completion" /usr/local/bin/edge-agent
    rmdir "${completion%/*}" "${completion%/completions/*}" 2>/dev/null || true
    rm -rf "${prefix:?}"
    if systemd_runs; then systemctl daemon-reload; fi
    say "removed; $config and $state are kept (delete them by hand: rm -r $config $state; deluser edge-agent)"
    exit 0
    ;;
"") ;;
*) fail "unknown argument $1; expected none or --uninstall" ;;
esac

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is older than Python 3.10 or missing; name another one: sudo PYTHON=python3.11 $0"
[ ! -e /usr/lib/edge-agent/venv ] ||
    fail "the Debian package edge-agent is installed; one of the two only: apt-get remove edge-agent"
missing=
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
fi
# ExecReload= of the unit.
[ -x /bin/kill ] || missing="$missing procps"
if [ -n "$missing" ]; then
    say "installing $missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # several packages
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
fi

if ! getent passwd edge-agent >/dev/null; then
    say "adding the system user edge-agent"
    useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin edge-agent
fi

say "installing into $prefix"
mkdir -p "$prefix"
[ -x "$prefix/venv/bin/python" ] || "$python" -m venv "$prefix/venv"
# shellcheck disable=SC2086  # PIP_ARGS is several words on purpose
"$prefix/venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade ${PIP_ARGS:-} "${here}[signing]"
rm -rf "$prefix/models"
if [ -d "$here/models" ]; then cp -R "$here/models" "$prefix/models"; else mkdir -p "$prefix/models"; fi
cp "$here/README.md" "$here/LICENSE" "$prefix/"
chown -R root:root "$prefix"
chmod -R u=rwX,go=rX "$prefix"
mkdir -p /usr/local/bin
ln -sf "$prefix/venv/bin/edge-agent" /usr/local/bin/edge-agent
mkdir -p "$(dirname "$completion")"
"$prefix/venv/bin/edge-agent" completion >"$completion"
chmod 0644 "$completion"

install -d -m 0755 "$config"
install -d -m 0750 -o edge-agent -g edge-agent "$state"
fresh=no
if [ ! -e "$config/config.yaml" ]; then
    fresh=yes
    sed "s|/opt/edge-agent|$prefix|g" "$here/deploy/edge-agent.example.yaml" >"$config/config.yaml"
    chgrp edge-agent "$config/config.yaml"
    chmod 0640 "$config/config.yaml"
fi
if [ ! -e "$config/secrets.env" ]; then
    (umask 077 && printf '# One NAME=value a line, for ${env:NAME} in config.yaml\n#MQTT_PASSWORD=\n' >"$config/secrets.env")
fi

mkdir -p "$(dirname "$unit")"
sed "s|/opt/edge-agent|$prefix|g" "$here/deploy/edge-agent.service" >"$unit"
chmod 0644 "$unit"
if systemd_runs; then
    systemctl daemon-reload
    systemctl enable --quiet edge-agent.service
fi

if [ "$fresh" = yes ]; then
    say "installed. Now describe your sensors in $config/config.yaml and passwords in $config/secrets.env, then:"
    say "    edge-agent check -c $config/config.yaml --connect"
    say "    systemctl start edge-agent && journalctl -fu edge-agent"
elif systemd_runs; then
    systemctl restart edge-agent.service
    say "upgraded and restarted; configuration and data are as they were"
else
    say "upgraded; configuration and data are as they were"
fi
