#!/bin/sh
# The init of the User-mode Linux that uml.sh boots: makes a SCSI target
# of one LUN, seen through UML_NEXUSES I_T nexuses as /dev/sda, /dev/sdb, ...,
# each with a partition 1, with complete SPC-3 persistent reservations
# including APTPL; then runs the command and powers off.
#
# The root file system is the host's, mounted read-only: whatever is written
# here goes to a tmpfs, except to the build directory.  Must never be run by
# anything but that kernel.
[ $$ -eq 1 ] || exit 1
set -e      # the exit of init is a panic, and uml.sh shows the console
# The kernel makes its parameters uml_* variables of our environment. The rest
# of it, with what was fetched on its paths, and the command are uml.sh's.
# shellcheck source=/dev/null disable=SC2154
. "$uml_run/command"
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
# With mount(2) a hostfs takes its directory in the same way everywhere.
export LIBMOUNT_FORCE_MOUNT2=always
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp

# shellcheck disable=SC2154
[ -d "$uml_top" ] || {  # it was below /tmp or /run
    mkdir -p "$uml_top"
    mount -r -t hostfs -o "$uml_top" top "$uml_top"
}
[ -d "$BUILD" ] || mkdir -p "$BUILD"
mount -t hostfs -o "$BUILD" build "$BUILD"
cd "$PWD"

mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr

# /run/insmod MODULE... [PARAMETER=VALUE...]: loads them in this order, which
# must be that of their dependencies; the kernel has those that are no files.
mkdir /run/kmod
ln -s "$(command -v kmod)" /run/kmod/insmod
cat >/run/insmod <<'END'
#!/bin/sh
parameters=
for word; do
    case $word in *=*) parameters="$parameters $word" ;; esac
done
for word; do
    case $word in *=*) continue ;; esac
    file=$(find "$UML_MODULES" -name "$word.ko*")
    # shellcheck disable=SC2086 # words
    [ -z "$file" ] || /run/kmod/insmod "$file" $parameters || exit 1
done
END
chmod 755 /run/insmod
/run/insmod configfs scsi_common scsi_mod crc64 crc64_rocksoft_generic \
    crc64-rocksoft t10-pi sd_mod sg target_core_mod target_core_file tcm_loop \
    dm-mod
[ -e /dev/mapper/control ] || {
    mkdir -p /dev/mapper
    mknod /dev/mapper/control c 10 236
}

# One partition, type 83, 8 sectors from the start, 32 MB less one sector.
printf '\0\0\2\0\203\0\0\0\10\0\0\0\370\177\0\0' |
    dd of=/run/disk0 bs=1 seek=446 status=none
printf '\125\252' | dd of=/run/disk0 bs=1 seek=510 status=none
truncate -s 16777216 /run/disk0

target=/sys/kernel/config/target
mount -t configfs configfs /sys/kernel/config
mkdir -p /run/target/pr
echo /run/target >$target/dbroot
disk=$target/core/fileio_0/disk0
mkdir -p $disk
echo fd_dev_name=/run/disk0,fd_dev_size=16777216 >$disk/control
echo 1 >$disk/enable
echo prhelper-disk0 >$disk/wwn/vpd_unit_serial
n=1
while [ $n -le "$UML_NEXUSES" ]; do
    wwn=$(printf 'naa.50014050000000%02x' $n)
    tpgt=$target/loopback/$wwn/tpgt_1
    mkdir -p "$tpgt/lun/lun_0"
    echo "$wwn" | sed 's/naa.5/naa.6/' >"$tpgt/nexus"
    # Since 6.5 a loopback port has no number unless it is given one.
    [ ! -e "$tpgt/rtpi" ] || echo $n >"$tpgt/rtpi"
    ln -s $disk "$tpgt/lun/lun_0/disk0"
    n=$((n + 1))
done

# Both terminals pass bytes through as they are.
for tty in /dev/tty1 /dev/tty2; do
    stty -F $tty -opost
done
set +e
"$@" </dev/null >/dev/tty1 2>/dev/tty2
status=$?
# It waits until all that was written has been passed on.
for tty in /dev/tty1 /dev/tty2; do
    stty -F $tty -opost
done
echo $status >"$uml_run/status"
echo o >/proc/sysrq-trigger
sleep 60
