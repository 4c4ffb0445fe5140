#!/bin/sh
# demo.sh [migration]
#
# Shows the helper at work on a machine without any SCSI: boots a real Linux
# kernel with a SCSI target (tests/lib/uml.sh) and tells demo.py's story in it;
# with migration, moving.py's in Debian sid, which needs root and mmdebstrap.
# What that takes is fetched into build/ if it is not installed.
#
# Must write nothing outside the build directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
"$top/tests/lib/uml.sh"
story=$top/tests/demo/demo.py
packages='user-mode-linux kmod mount'
if [ "${1:-}" = migration ]; then
    # First, as it says what it does.
    "$top/tests/lib/debian.sh" sid true
    story=$top/tests/demo/moving.py
    packages=
fi
# shellcheck disable=SC2016,SC2086 # PYTHON is for the inner shell; words
exec "$top/tests/lib/fetch.sh" $packages python3 -- \
    sh -c 'exec "$PYTHON" -B "$1"' sh "$story"
