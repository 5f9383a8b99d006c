#!/bin/sh
# Puts vmbackup and its service in place, or takes them away: `make install`, `make uninstall`. May be repeated.
#   install.sh install|uninstall DESTDIR PREFIX PYTHON
# The program: an environment of its own in PREFIX/lib/vmbackup, linked from PREFIX/bin. With DESTDIR all goes below that
# folder and nothing of the running system is touched. pip is used as it is configured.
set -eu
umask 022
verb=$1; DESTDIR=$2; PREFIX=$3; PYTHON=$4
cd "$(dirname "$0")/.."

case $PREFIX in /*[!/]) ;; *) echo "PREFIX is a folder like /usr, not '$PREFIX'" >&2; exit 2 ;; esac
home=$PREFIX/lib/vmbackup
doc=$PREFIX/share/doc/vmbackup
# systemd looks for its files here and nowhere else.
case $PREFIX in /usr | /usr/local) lib=$PREFIX/lib ;; *) lib=/usr/local/lib ;; esac
unit=$lib/systemd/system/vmbackup.service
tmpfiles=$lib/tmpfiles.d/vmbackup.conf
sysusers=$lib/sysusers.d/vmbackup.conf
config=/etc/vmbackup/config.toml

make_home() {   # beside the old one, which stays if this fails
    new=$DESTDIR$home.new
    rm -rf "$new"
    mkdir -p "$(dirname "$new")"
    # libvirt's own binding for Python is the distribution's: it fits the installed libvirt, and needs no compiler.
    if "$PYTHON" -c 'import libvirt' 2>/dev/null; then
        "$PYTHON" -m venv --system-site-packages "$new"
    else
        echo "no libvirt module in $PYTHON (apt install python3-libvirt): it is built, with gcc, pkg-config, libvirt-dev"
        "$PYTHON" -m venv "$new"
    fi
    "$new/bin/python" -m pip install -q --no-compile .
    # It was made under another name than it will have.
    grep -rlIF "$new" "$new/bin" "$new/pyvenv.cfg" | while read -r file; do sed -i "s|$new|$home|g" "$file"; done
    "$new/bin/python" -m compileall -q -s "$new" -p "$home" "$new/lib"
    rm -rf "$DESTDIR$home.old"
    [ ! -e "$DESTDIR$home" ] || mv "$DESTDIR$home" "$DESTDIR$home.old"
    mv "$new" "$DESTDIR$home"
    rm -rf "$DESTDIR$home.old"
}

put() {   # put SOURCE TARGET: a file, with its paths those of PREFIX
    mkdir -p "$(dirname "$DESTDIR$2")"
    sed "s|/usr/bin/vmbackup|$PREFIX/bin/vmbackup|g; s|/usr/share/doc/vmbackup|$doc|g; s|DOC/|$doc/|g" "$1" >"$DESTDIR$2.new"
    chmod 644 "$DESTDIR$2.new"
    mv "$DESTDIR$2.new" "$DESTDIR$2"
}

running() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

case $verb in
install)
    make_home
    mkdir -p "$DESTDIR$PREFIX/bin" "$DESTDIR$doc"
    ln -sfn "$home/bin/vmbackup" "$DESTDIR$PREFIX/bin/vmbackup"
    put systemd/vmbackup.service "$unit"
    put systemd/vmbackup.tmpfiles "$tmpfiles"
    put systemd/vmbackup.sysusers "$sysusers"
    for file in config.example.toml docs/operations.md docs/first-day.md docs/disaster-day.md systemd/vmbackup.apparmor systemd/vmbackup.cil; do put "$file" "$doc/$(basename "$file")"; done
    install -m 644 docs/page.png docs/page-guest.png "$DESTDIR$doc/"
    [ -e "$DESTDIR$config" ] || put systemd/config.toml "$config"
    if [ -z "$DESTDIR" ]; then
        systemd-sysusers "$sysusers"
        systemd-tmpfiles --create "$tmpfiles"
    fi
    if running; then
        systemctl daemon-reload
        if systemctl is-active --quiet vmbackup; then
            echo "installed; the service runs the old version until: systemctl restart vmbackup"
            exit 0
        fi
    fi
    echo "installed; next: look at $config, then: vmbackup init; vmbackup doctor; systemctl enable --now vmbackup"
    ;;
uninstall)
    if running; then systemctl disable --now --quiet vmbackup || true; fi
    rm -rf "$DESTDIR$home" "$DESTDIR$home.new" "$DESTDIR$home.old" "$DESTDIR$doc"
    rm -f "$DESTDIR$PREFIX/bin/vmbackup" "$DESTDIR$unit" "$DESTDIR$tmpfiles" "$DESTDIR$sysusers"
    if running; then systemctl daemon-reload; fi
    echo "removed; configuration and state stay: /etc/vmbackup /var/lib/vmbackup /var/cache/vmbackup"
    ;;
*)
    echo "install.sh: install or uninstall, not $verb" >&2
    exit 2
    ;;
esac
