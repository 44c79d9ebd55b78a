#!/bin/sh
# Installs the Edgewise agent that is in this folder, and nothing else: no network is used.
# Made for the boards of one profile; `sh install.sh --help` says what can be chosen.
set -eu
umask 022

PROFILE='@PROFILE@'
VERSION='@VERSION@'
MACHINE='@MACHINE@'
BITS='@BITS@'
PYTHON='@PYTHON@'
MODULES='@MODULES@'
SYSTEM_PACKAGES='@SYSTEM_PACKAGES@'
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

prefix=/opt/edgewise-agent
state=/var/lib/edgewise-agent
user=edgewise-agent
systemd=yes
compile=--compile
work=install
purge=no

say() { echo "edgewise-agent: $*"; }
die() { status=$1; shift; echo "edgewise-agent: $*" >&2; exit "$status"; }
usage() {
    cat <<END
usage: sh install.sh [--prefix DIR] [--state DIR] [--user NAME] [--no-systemd] [--no-compile]
       sh install.sh --uninstall [--purge] [--prefix DIR] [--state DIR] [--user NAME] [--no-systemd]

Installs the Edgewise agent $VERSION for $PROFILE. A second run changes nothing, a newer package takes its place.

  --prefix DIR   where the program goes             [/opt/edgewise-agent]
  --state DIR    the device's state                 [/var/lib/edgewise-agent]
  --user NAME    who it runs as; made if missing    [edgewise-agent]
  --no-systemd   install no service
  --no-compile   compile no Python files: quicker to install, slower to start
  --uninstall    remove the program and the service; the state stays
  --purge        with --uninstall: the state too. The device must be enrolled again afterwards.

exit status: 2 the command is wrong, 3 this board is not fit for it, 4 the package is damaged, 1 anything else
END
}

while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --state | --user) [ $# -ge 2 ] || die 2 "$1 needs a value" ;;
    esac
    case $1 in
    --prefix) prefix=$2; shift ;;
    --state) state=$2; shift ;;
    --user) user=$2; shift ;;
    --no-systemd) systemd=no ;;
    --no-compile) compile=--no-compile ;;
    --uninstall) work=uninstall ;;
    --purge) purge=yes ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; die 2 "unknown option $1" ;;
    esac
    shift
done
for folder in "$prefix" "$state"; do
    case $folder in
    / | *[!A-Za-z0-9/._-]* | *..*) die 2 "$folder: use letters, digits and / . _ - alone, and no .." ;;
    /*) ;;
    *) die 2 "$folder is not an absolute path" ;;
    esac
done
case $user in '' | -* | *[!A-Za-z0-9_-]*) die 2 "$user is no name of a user" ;; esac
[ "$purge" = no ] || [ "$work" = uninstall ] || die 2 "--purge goes with --uninstall"

me=$(id -u)
unit=/etc/systemd/system/edgewise-agent.service
link=/usr/local/bin/edgewise-agent
[ "$systemd" = no ] || [ "$me" = 0 ] || die 2 "a service is installed by root: use sudo, or --no-systemd"
running_systemd() { [ "$systemd" = yes ] && [ -d /run/systemd/system ]; }

if [ "$work" = uninstall ]; then
    if [ "$systemd" = yes ] && [ -e "$unit" ]; then
        say "removing the service"
        if running_systemd; then systemctl disable --now edgewise-agent.service || true; fi
        rm -f "$unit"
        if running_systemd; then systemctl daemon-reload; fi
    fi
    if [ "$(readlink "$link" 2>/dev/null || true)" = "$prefix/current/bin/edgewise-agent" ]; then rm -f "$link"; fi
    say "removing the program from $prefix"
    rm -rf "$prefix/releases" "$prefix/current"
    rmdir "$prefix" 2>/dev/null || true
    if [ "$purge" = yes ]; then
        say "removing the state in $state"
        rm -rf "$state"
        if [ "$me" = 0 ] && [ "$user" = edgewise-agent ] && id "$user" >/dev/null 2>&1; then userdel "$user"; fi
    else
        say "the device's state stays in $state"
    fi
    exit 0
fi

say "checking the package"
cd "$HERE"
sha256sum --check --quiet --strict SHA256SUMS || die 4 "the package is damaged: copy it to this board again"

python=
for name in "python$PYTHON" python3; do
    found=$(command -v "$name" 2>/dev/null) || continue
    is=$("$found" -c 'import struct, sys; print("%d.%d" % sys.version_info[:2], struct.calcsize("P") * 8)')
    if [ "$is" = "$PYTHON $BITS" ]; then python=$found; break; fi
    say "$found is Python and bits: $is"
done
[ -n "$python" ] || die 3 "this package is for Python $PYTHON ($BITS bits): make one with --python for this board's"
is=$("$python" -c 'import platform; print(platform.machine())')
case $MACHINE:$is in
"$MACHINE:$MACHINE" | armv7l:aarch64 | armv7l:armv8l) ;;
*) die 3 "this package is for $MACHINE, and this board is $is" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null || "$python" -c 'import venv' 2>/dev/null ||
    die 3 "Python's module venv is missing: install python3-venv"

imports_all() { for module in $MODULES; do "$python" -I -c "import $module" 2>/dev/null || return 1; done; }
if ! imports_all; then
    [ "$me" = 0 ] || die 3 "missing: $SYSTEM_PACKAGES. Let root install these packages"
    say "installing Debian's $SYSTEM_PACKAGES from the package"
    dpkg --install --skip-same-version --refuse-downgrade debs/*.deb || die 3 "Debian's packages cannot be installed: see above"
    imports_all || die 3 "Python still cannot import all of: $MODULES"
fi

release=$(sha256sum SHA256SUMS | cut -c1-16)
home=$prefix/releases/$release
if [ -e "$home/.whole" ]; then
    say "agent $VERSION ($release) is installed in $home already"
else
    say "installing agent $VERSION ($release) into $home"
    mkdir -p "$prefix/releases"
    trap 'rm -rf "$home"' EXIT
    trap 'exit 130' INT TERM
    rm -rf "$home"
    "$python" -m venv --without-pip @VENV_OPTIONS@ "$home"
    pip=$(echo "$HERE"/wheels/pip-*.whl)
    PYTHONPATH=$pip PIP_CONFIG_FILE=/dev/null PYTHONDONTWRITEBYTECODE=1 "$home/bin/python" -m pip --isolated install \
        --quiet --no-input --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --no-index --find-links "$HERE/wheels" --no-deps --require-hashes "$compile" --requirement requirements.txt
    say "trying it"
    "$home/bin/edgewise-agent" --help >/dev/null
    "$home/bin/python" -c 'import edgewise_agent.app
from edgewise_agent.engines import installed
print("edgewise-agent: engines:", ", ".join(" ".join(pair) for pair in sorted(installed().items())))'
    : >"$home/.whole"
    trap - EXIT INT TERM
fi

if ! id "$user" >/dev/null 2>&1; then
    [ "$me" = 0 ] || die 2 "there is no user $user, and only root can make one: --user $(id -un)"
    say "making the user $user"
    useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
fi
if [ ! -d "$state" ]; then
    say "making $state for $user"
    mkdir -p "$state"
    chmod 0700 "$state"
    [ "$me" != 0 ] || chown "$user:$(id -gn "$user")" "$state"
fi

ln -sfn "releases/$release" "$prefix/.current"
mv -Tf "$prefix/.current" "$prefix/current"
if [ "$me" = 0 ] && [ -d /usr/local/bin ]; then
    if [ -L "$link" ] || [ ! -e "$link" ]; then ln -sfn "$prefix/current/bin/edgewise-agent" "$link"; fi
fi

if [ "$systemd" = yes ]; then
    say "installing the service"
    mkdir -p "${unit%/*}"
    storage="StateDirectory=edgewise-agent"
    [ "$state" = /var/lib/edgewise-agent ] || storage="ReadWritePaths=$state"
    sed -e "s|^ExecStart=.*|ExecStart=$prefix/current/bin/edgewise-agent-launcher run --state $state|" \
        -e "s|^User=.*|User=$user|" -e "s|^Group=.*|Group=$(id -gn "$user")|" \
        -e "s|^StateDirectory=.*|$storage|" edgewise-agent.service >"$unit.new"
    mv -f "$unit.new" "$unit"
    if running_systemd; then
        systemctl daemon-reload
        systemctl enable edgewise-agent.service
        # Without an identity it would only fail again and again.
        if [ -e "$state/identity/identity.json" ]; then systemctl restart edgewise-agent.service; fi
    fi
fi

for old in "$prefix"/releases/*; do
    if [ "$old" != "$home" ] && [ -d "$old" ]; then
        say "removing the release before, ${old##*/}"
        rm -rf "$old"
    fi
done

say "installed. Next, as $user:"
say "  $prefix/current/bin/edgewise-agent enrol FILE --state $state"
if [ "$systemd" = yes ]; then say "then: systemctl start edgewise-agent"; else
    say "then: $prefix/current/bin/edgewise-agent-launcher run --state $state"
fi
