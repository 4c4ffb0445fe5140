#!/bin/sh
# Init of the virtual machine of the tests with QEMU, run by busybox in the
# initramfs that guest.sh packs.  It loads the SCSI modules, waits for the
# disk, and then is the test's remote hand: it runs each line that comes over
# the second serial port and answers with the output and "== STATUS".  The
# first port is left to the kernel's messages.
#
# It must never act on its own after "== 0" (all timing is the test's), and
# never end while the test talks to it, as the kernel would panic.

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module"
done </modules/order

exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
until [ -b /dev/sda ] && [ -c /dev/sg0 ]; do sleep 0.1; done
echo '== 0'
while read -r command; do
    eval "$command"
    echo "== $?"
done
poweroff -f
