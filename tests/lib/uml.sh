#!/bin/sh
# uml.sh COMMAND [ARGUMENT...]
#
# Runs COMMAND as root on a real Linux kernel that has a SCSI target: boots
# User-mode Linux, an ordinary process, with this machine's files as its
# root, and uml-init.sh as its init, which sets the target up.  COMMAND
# gets this environment, working directory, stdout and stderr; its exit status
# is ours.  124: out of time (UML_TIMEOUT seconds, 150 unless set); 125: the
# kernel did not get so far as to run it.
#
# Without COMMAND it only says whether there is such a kernel for this machine:
# 77, and why, if there is none.
#
# UML_MEMORY (512 MB) and UML_NEXUSES (2) size the machine.  What it takes is
# fetched if it is not installed.
#
# Must work for any user; must never let the guest write to this machine's
# files outside the build directory; must leave no process behind.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
machine=$(dpkg --print-architecture 2>/dev/null || echo amd64)
if [ "$machine" != amd64 ] && ! command -v linux.uml >/dev/null; then
    echo "Debian has no user-mode-linux for $machine, only for amd64" >&2
    exit 77
fi
[ $# -gt 0 ] || exit 0
[ -n "${UML_MODULES:-}" ] ||
    UML_MODULES=. exec "$top/tests/lib/fetch.sh" user-mode-linux kmod mount -- \
        "$0" "$@"

kernel=$(command -v linux.uml)
BUILD=${BUILD:-$top/build}
UML_MODULES=$(echo "${kernel%/bin/linux.uml}"/lib/uml/modules/*/kernel)
UML_NEXUSES=${UML_NEXUSES:-2}
export BUILD UML_MODULES UML_NEXUSES
memory=${UML_MEMORY:-512}
memory=${memory%M}
# shellcheck disable=SC3045 # a panic should leave no core
ulimit -c 0 2>/dev/null || :

mkdir -p "$BUILD"
run=$(mktemp -d "$BUILD/uml.XXXXXX")
pid=
trap 'rm -rf "$run"' EXIT
trap 'if [ -n "$pid" ]; then kill "$pid"; wait "$pid" || :; fi; exit 130' \
    INT TERM HUP

quoted() {
    for word; do
        printf " '%s'" "$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")"
    done
}
{
    export -p
    echo "cd$(quoted "$PWD")"
    echo "set --$(quoted "$@")"
} >"$run/command"

# The guest's memory is a file in /dev/shm, unless that is too small for it or
# may not be executed from, as in most containers.
free=$(df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ "${free:-0}" -lt "$memory" ] ||
    grep -q '^[^ ]* /dev/shm [^ ]* [^ ]*noexec' /proc/mounts; then
    TMPDIR=$run
    export TMPDIR
fi

# The kernel's own messages go to a file, terminals 1 and 2 are our stdout and
# stderr.
timeout -k 5 "${UML_TIMEOUT:-150}" "$kernel" \
    "mem=${memory}M" rootfstype=hostfs rootflags=/ ro \
    "init=$top/tests/lib/uml-init.sh" "uml_dir=$run/" \
    "uml_top=$top" "uml_run=$run" \
    con=null con0=null,fd:3 con1=null,fd:1 con2=null,fd:4 quiet \
    </dev/null 3>"$run/console" 4>&2 2>&3 &
pid=$!
status=0
wait "$pid" || status=$?
pid=
if [ -s "$run/status" ]; then
    exit "$(cat "$run/status")"
fi
tail -n 40 "$run/console" >&2
if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "uml.sh: out of time: $*" >&2
    exit 124
fi
echo "uml.sh: the kernel ended without an exit status of: $*" >&2
exit 125
