#!/bin/sh
# check-all.sh TARGET...
#
# Makes each TARGET, one after the other, until one fails. Ends with the
# seconds that each took, and what it skipped: a skip of all of it must not be
# overlooked.
set -eu

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'cat "$work/times" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
SOAK_MINUTES=${SOAK_MINUTES:-1}
export SOAK_MINUTES

for target; do
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
