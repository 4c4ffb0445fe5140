#!/bin/sh
# libvirt.sh
#
# The life of the helper that libvirt starts for a virtual machine: boots
# User-mode Linux with a SCSI target, libvirtd and, started by it, a virtual
# machine with <reservations managed='yes'/>; see libvirt/life.py for what is
# tested.  All of it with the helper under test (HELPER, ./qemu-pr-helper) and
# then with QEMU's.  libvirt and what chain.sh needs is fetched if it is not
# installed.
#
# Must work for any user and without KVM, and must write nothing outside the
# build directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck disable=SC2046 # a list of words
[ -n "${LIBVIRT_FETCHED:-}" ] ||
    LIBVIRT_FETCHED=1 exec "$top/tests/lib/fetch.sh" python3 libvirt-daemon \
        libvirt-clients $("$top/tests/lib/multipath.sh" packages) -- "$0"

QEMU_RUN="$top/tests/lib/multipath.sh $PYTHON $top/tests/libvirt/life.py"
UML_NEXUSES=3
export QEMU_RUN UML_NEXUSES
exec "$top/tests/qemu/chain.sh"
