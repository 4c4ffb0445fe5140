#!/bin/sh
# SPDX-License-Identifier: MIT
# qemu.sh DISK [QEMU-OPTION...]
#
# Runs a virtual machine whose SCSI disk is the whole disk DISK, and whose
# persistent reservations go through the helper at SOCKET. Must never be given
# a partition or a logical volume, which the helper refuses.
set -eu

disk=$1
shift
socket=${SOCKET:-/run/qemu-pr-helper.sock}
exec "${QEMU:-qemu-system-x86_64}" \
    -object "pr-manager-helper,id=pr0,path=$socket" \
    -drive "if=none,id=hd,driver=raw,cache=none,file.driver=host_device,file.filename=$disk,file.pr-manager=pr0" \
    -device virtio-scsi \
    -device scsi-block,drive=hd,share-rw=on \
    "$@"
