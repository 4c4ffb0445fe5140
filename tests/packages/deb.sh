#!/bin/sh
# deb.sh
#
# The Debian package: that it builds, that lintian has nothing to say, and that
# in a Debian with QEMU's helper it takes that one's place, keeps it through
# upgrades of either, and gives it back when it is removed, to the last byte.
# Needs root, debhelper, lintian and mmdebstrap.
#
# Must leave the machine's own packages alone: it installs into a new root
# below the temporary directory only, which it removes.
set -eu

cd "$(dirname "$0")/../.."
if [ "$(id -u)" -ne 0 ]; then
    echo "SKIP: deb.sh needs root, for a chroot" >&2
    [ "${CI:-}" != true ] && exit 0
    exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 1' INT TERM HUP
chmod 755 "$root"

fail() {
    echo "deb.sh: $*" >&2
    exit 1
}

# in_root COMMAND...
in_root() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
        chroot "$root" "$@"
}

# All files with their modes and contents; logs, caches, and the list of
# packages, in which dpkg changes the order, do not count.
listing() {
    (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./dev \
        -o -path ./var/log -o -path ./var/cache/ldconfig \
        -o -path './var/lib/dpkg/*-old' -o -path ./var/lib/dpkg/status \
        -o -path ./packages \) -prune -o -printf '%p %m %l ' \
        \( -type f -exec sha256sum {} \; -o -printf '\n' \)) | sort
}

# helper NAME WHOSE: is /usr/bin/NAME QEMU's, ours or missing?
helper() {
    version=$(in_root "/usr/bin/$1" -V 2>&1) || version=none
    case $version in
    none) whose=missing ;;
    *'Fabrice Bellard'*) whose=qemu ;;
    *) whose=ours ;;
    esac
    [ "$whose" = "$2" ] || fail "$1 should be $2, but is $whose: $version"
}

make -s deb
# Not meant for an upload to Debian, so there is no bug that asks for it.
lintian --allow-root --fail-on error,warning \
    --suppress-tags initial-upload-closes-no-bugs build/deb/*.changes

# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mmdebstrap --quiet --variant=essential --include=qemu-system-common \
    "$suite" "$root"
mkdir "$root/packages"
cp build/deb/prhelper_*.deb "$root/packages/prhelper.deb"
(cd "$root/packages" &&
    apt-get -q -q -o APT::Sandbox::User=root download qemu-system-common &&
    mv qemu-system-common_*.deb qemu.deb)

in_root dpkg -i /packages/qemu.deb
helper qemu-pr-helper qemu
listing >"$root/packages/before"

in_root dpkg -i /packages/prhelper.deb
helper qemu-pr-helper ours
helper qemu-pr-helper.qemu qemu
[ -z "$(in_root dpkg --verify prhelper)" ] || fail "it is not all in place"
in_root dpkg -i /packages/qemu.deb      # as in an upgrade
helper qemu-pr-helper ours
helper qemu-pr-helper.qemu qemu
in_root dpkg -i /packages/prhelper.deb
helper qemu-pr-helper ours
in_root dpkg -P prhelper
helper qemu-pr-helper qemu
listing >"$root/packages/after"
diff "$root/packages/before" "$root/packages/after" ||
    fail "these are not as they were before"

# The other order, and without QEMU.
in_root dpkg -P --force-depends qemu-system-common
helper qemu-pr-helper missing
in_root dpkg -i /packages/prhelper.deb
helper qemu-pr-helper ours
in_root dpkg -i /packages/qemu.deb
helper qemu-pr-helper ours
helper qemu-pr-helper.qemu qemu
in_root dpkg -r prhelper
helper qemu-pr-helper qemu
helper qemu-pr-helper.qemu missing
echo "the package takes the place of QEMU's helper, and gives it back"
