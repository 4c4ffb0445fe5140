#!/bin/sh
# migration.sh
#
# Live migration of a guest with a reservation, between real QEMUs of Debian
# sid (from 11.0 on they take reservations along), in User-mode Linux: see
# qemu/migration.py for what is tested. HELPER (./qemu-pr-helper) is the helper
# under test, as it was built here. Ends with "N passed, N failed, N skipped";
# an archive that cannot be had is a skip.
#
# Needs root, for a Debian of its own (debian.sh). Must write nothing outside
# the build directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
status=0
# shellcheck disable=SC2016 # for the inner shell
"$top/tests/lib/debian.sh" sid sh -c '
    mkdir -p build
    cat >build/helper
    chmod 755 build/helper
    HELPER=$PWD/build/helper UML_NEXUSES=5 UML_MEMORY=1024M UML_TIMEOUT=1500 \
        exec tests/lib/guest.sh multipath tests/qemu/migration.py' \
    <"${HELPER:-$top/qemu-pr-helper}" || status=$?
if [ $status -eq 77 ]; then
    echo 'SKIP: the archive does not give Debian sid'
    echo '0 passed, 0 failed, 1 skipped'
    status=0
fi
exit $status
