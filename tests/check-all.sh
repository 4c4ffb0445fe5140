#!/bin/sh
# check-all.sh TARGET... [-- TARGET...]
#
# Makes each TARGET, one after the other, until one fails. Behind the -- what
# MEANWHILE names is made at the same time, as if nobody waited for it: these
# must be TARGETs that only compute, and share with others only what has been
# built before the --. Ends with the seconds that each took, and what it
# skipped: a skip of all of it must not be overlooked.
#
# Must leave no process behind.
set -eu

cd "$(dirname "$0")/.."
work=$(mktemp -d)
meanwhile=
# shellcheck disable=SC2317 # the trap's
ended() {
    trap '' INT TERM HUP
    [ -z "$meanwhile" ] || kill -TERM "-$meanwhile" 2>/dev/null || :
    cat "$work/times" 2>/dev/null || :
    rm -rf "$work"
}
trap ended EXIT
trap 'exit 1' INT TERM HUP
SOAK_MINUTES=${SOAK_MINUTES:-1}
export SOAK_MINUTES

for target; do
    if [ "$target" = -- ]; then
        # In a process group of its own, to be ended as one.
        # shellcheck disable=SC2086 # a list of words
        setsid nice -n 19 "$0" ${MEANWHILE:-} >"$work/meanwhile" 2>&1 &
        meanwhile=$!
        continue
    fi
    printf '\n== make %s\n' "$target"
    began=$(date +%s)
    # A pipe would hide how it ended.
    {
        status=0
        ${MAKE:-make} "$target" || status=$?
        echo $status >"$work/status"
    } 2>&1 | tee "$work/log"
    printf '%5d s  %s\n' $(($(date +%s) - began)) "$target" >>"$work/times"
    grep '^SKIP: ' "$work/log" >>"$work/times" || :
    status=$(cat "$work/status")
    [ "$status" -eq 0 ] || exit "$status"
done
if [ -n "$meanwhile" ]; then
    status=0
    wait "$meanwhile" || status=$?
    meanwhile=
    cat "$work/meanwhile"
    exit $status
fi
