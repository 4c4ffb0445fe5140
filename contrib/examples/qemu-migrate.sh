#!/bin/sh
# SPDX-License-Identifier: MIT
# qemu-migrate.sh DISK [QEMU-OPTION...]
#
# As qemu.sh, for a virtual machine that moves to another host and takes its
# reservation along, with QEMU 11.0 or later: the same on both hosts, each with
# a helper of its own, on the host that it moves to with -incoming. Both QEMUs
# have the disk open, and the other one must have it open for writing before
# the guest runs. Must never be used for two hosts that are one initiator to
# the disk.
set -eu

disk=$1
shift
socket=${SOCKET:-/run/qemu-pr-helper.sock}
exec "${QEMU:-qemu-system-x86_64}" \
    -object "pr-manager-helper,id=pr0,path=$socket" \
    -drive "if=none,id=hd,driver=raw,cache=none,file.driver=host_device,file.filename=$disk,file.pr-manager=pr0,file.locking=off,auto-read-only=off" \
    -device virtio-scsi \
    -device scsi-block,drive=hd,share-rw=on,migrate-pr=on \
    "$@"
