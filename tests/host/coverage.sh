#!/bin/sh
# coverage.sh [FILE...]
#
# Runs the host's tests that are about a disk on a helper that counts what it
# executes, and prints what share of the lines and branches of each FILE
# (protocol.c and sg_io.c) that was, and which were left out. The counters are
# a file that the helper maps when it starts: what a process counted stays,
# however it ends, and counting takes no system call that the sandbox would
# have to allow.
#
# Must fail if less than COVERAGE_LEAST (95) percent of the lines of any FILE
# were executed, or if a test failed; must leave nothing outside the build
# directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$top/build}/coverage
[ $# -gt 0 ] || set -- protocol.c sg_io.c

cd "$top"
# Open to all users: some tests start the helper as another.
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
trap 'exit 1' INT TERM HUP
chmod 1777 "$raw"
counting='-O1 -g -fcoverage-mapping -fprofile-instr-generate'
counting="$counting -mllvm -runtime-counter-relocation"
${MAKE:-make} CC=clang BUILD="$build" HELPER="$build/qemu-pr-helper" \
    CFLAGS="$counting" "$build/qemu-pr-helper" \
    "$build/sim/qemu-pr-helper" "$build/sim/qemu-pr-client"

LLVM_PROFILE_FILE=$raw/%p%c.profraw
export LLVM_PROFILE_FILE
# The descriptor of the counters would become one of the streams, and their
# file is too large where no file may be.
PYTEST_ADDOPTS='--deselect
    tests/host/test_startup.py::test_streams_that_are_closed_at_start --deselect
    tests/host/test_report.py::test_a_file_that_takes_no_more_harms_nobody --deselect
    tests/host/test_startup.py::test_dev_null_is_needed_for_a_closed_descriptor --deselect
    tests/host/test_sandbox.py::test_a_kernel_that_has_landlock_is_not_said_to_have_none'
export PYTEST_ADDOPTS
status=0
# shellcheck disable=SC2016 # for the inner shell
HELPER="$build/qemu-pr-helper" SIM_HELPER="$build/sim/qemu-pr-helper" \
    tests/lib/fetch.sh python3 python3-pytest -- \
    sh -c 'exec "$PYTHON" -B -m pytest \
    -p no:cacheprovider -q tests/host/test_protocol.py \
    tests/host/test_daemon.py tests/host/test_client.py \
    tests/host/test_report.py' || status=$?

"$(clang -print-prog-name=llvm-profdata)" merge -failure-mode=all \
    -o "$build/counted" "$raw"
"$(clang -print-prog-name=llvm-cov)" export -format=lcov \
    -instr-profile "$build/counted" "$build/sim/qemu-pr-helper" "$@" \
    >"$build/lcov"
awk -F '[:,]' -v least="${COVERAGE_LEAST:-95}" '
function percent(n, of) {
    return sprintf("%d of %d (%.1f %%)", n, of, of ? 100 * n / of : 0)
}
$1 == "SF" {
    file = $2
    sub(".*/", "", file)
    lines = hit = branches = taken = 0
    missing = ""
    for (n = 1; (getline text < $2) > 0; n++)
        source[n] = text
    close($2)
}
$1 == "DA" {
    lines++
    if ($3 > 0)
        hit++
    else
        missing = missing sprintf("%s:%d: not executed: %s\n", file, $2,
                                  source[$2])
}
$1 == "BRDA" {
    branches++
    if ($5 > 0)
        taken++
    else
        missing = missing sprintf("%s:%d: never %s: %s\n", file, $2,
                                  $4 % 2 ? "false" : "true", source[$2])
}
$1 == "end_of_record" {
    printf "%s", missing
    summary = summary file ": lines " percent(hit, lines) ", branches " \
        percent(taken, branches) "\n"
    files++
    if (100 * hit < least * lines)
        low = 1
}
END {
    printf "%s", summary
    if (low || !files)
        print "less than " least " % of the lines"
    exit low || !files
}' "$build/lcov" || status=1
exit $status
