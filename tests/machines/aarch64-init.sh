#!/bin/sh
# Init of the machine of `make check-aarch64`, run by busybox in the initramfs
# that aarch64.sh packs: runs the tests on the helper built with glibc and
# with musl, prints what they came to, and powers off.
#
# That the kernel has logged a refused call fails the suite (but for
# test_sandbox.py, which makes such calls): the helper must get by with the
# lists of sandbox.c. Must never be run by anything but that machine.
[ $$ -eq 1 ] || exit 1
/bin/busybox --install -s /bin
PATH=/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
export PATH HOME
mkdir -p /proc /sys /tmp /run /root /results /var
chmod 1777 /tmp
ln -s /run /var/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
exec </dev/null >/dev/ttyAMA0 2>&1
stty -opost </dev/ttyAMA0
ip link set lo up

cd /prhelper || exit

tests() {
    python3 -m pytest -p no:cacheprovider -q --tb=short --color=no \
        --durations=5 --basetemp="/tmp/$name" "$@" 2>&1
}

suite() {
    name=$1
    tests --junitxml="/results/$name.xml" tests/host/test_protocol.py \
        tests/host/test_daemon.py tests/host/test_startup.py \
        tests/host/test_options.py tests/host/test_client.py \
        >"/results/$name.log"
    status=$?
    if dmesg | grep 'type=1326'; then
        status=31
    fi >>"/results/$name.log"
    tests --junitxml="/results/$name-sandbox.xml" tests/host/test_sandbox.py \
        >"/results/$name-sandbox.log"
    echo $? >"/results/$name-sandbox.status"
    dmesg -c >/dev/null
    echo $status >"/results/$name.status"
}

suite glibc
CLIENT=build/static/qemu-pr-client
HELPER=build/static/qemu-pr-helper
SIM_HELPER=build/static/sim/qemu-pr-helper
export CLIENT HELPER SIM_HELPER
suite musl
python3 tests/lib/summary.py /results glibc glibc-sandbox musl musl-sandbox
poweroff -f
