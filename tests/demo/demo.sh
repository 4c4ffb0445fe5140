#!/bin/sh
# demo.sh
#
# Shows the helper at work on a machine without any SCSI: boots a real Linux
# kernel with a SCSI target (tests/lib/uml.sh) and tells demo.py's story in it.
# What that takes is fetched into build/ if it is not installed.
#
# Must not need root, and must write nothing outside the build directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
"$top/tests/lib/uml.sh"
# shellcheck disable=SC2016 # PYTHON is for the inner shell
exec "$top/tests/lib/fetch.sh" user-mode-linux kmod mount python3 -- \
    sh -c 'exec "$PYTHON" -B "$1/demo/demo.py"' sh "$top/tests"
