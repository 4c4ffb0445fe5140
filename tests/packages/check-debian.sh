#!/bin/sh
# check-debian.sh SUITE...
#
# For each SUITE, all at the same time, as they wait more than they compute:
# README's way, from its apt line on, in a new and minimal Debian of SUITE:
# both its commands as an ordinary user, with umask 0002, the first as root,
# too; then the tests with a multipathd and with QEMU, of which each suite has
# its own version, and says so.  Needs root and mmdebstrap; see debian.sh.
#
# An archive that cannot be reached is a skip, which is reported; everything
# else that goes wrong must be a failure.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
suite=${1:?is missing, as in make check-debian SUITE=trixie}
if [ $# -gt 1 ]; then
    failed=$(mktemp)
    trap 'rm -f "$failed"' EXIT
    trap 'trap "" TERM; kill 0; exit 1' INT TERM HUP
    for suite; do
        { "$0" "$suite" 2>&1 || echo "$suite" >>"$failed"; } |
            sed -u "/^SKIP: /!s/^/$suite: /" &
    done
    wait
    [ ! -s "$failed" ] || echo "failed on $(paste -s -d ' ' "$failed")" >&2
    exit "$(grep -c . "$failed")"
fi

# in_root OPTION... -- COMMAND...
in_root() {
    options=
    while [ "$1" != -- ]; do
        options="$options $1"
        shift
    done
    shift
    printf '\n-- %s: %s\n' "$suite" "$*"
    # shellcheck disable=SC2086 # words
    "$top/tests/lib/debian.sh" $options "$suite" "$@"
}

status=0
in_root -n -r -- apt-get -q -q update || status=$?
line=$(sed -n 's/^ *sudo apt install //p' "$top/README.md")
# shellcheck disable=SC2086 # words
if [ $status -eq 0 ]; then
    # Names that this suite does not have are no matter of the network.
    in_root -r -- apt-get -q -q -s install $line >/dev/null
    in_root -r -- env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -q -y --no-install-recommends install $line >/dev/null ||
        status=77
fi
case $status in
0) ;;
77 | 100)
    echo "SKIP: check-debian of $suite: the archive could not be reached"
    exit 0
    ;;
*) exit $status ;;
esac

in_root -r -- make -s demo
# As root the sandbox meets what this suite's libc calls before all else; and
# what root has had done the user need not do again, in User-mode Linux.
in_root -r -- make -s check T='protocol sandbox options startup log'
in_root -m 0002 -- make -s demo
for check in check check-multipath check-qemu; do
    in_root -m 0002 -- env AGAIN= RANDOM_COMMANDS=300 make -s $check
done
# shellcheck disable=SC2016 # for the inner shell
in_root -- sh -c '
    for package in gcc user-mode-linux multipath-tools qemu-system-x86 \
        linux-image-cloud-amd64; do
        apt-cache policy $package | sed -n "s/^  Candidate: /$package /p"
    done'
