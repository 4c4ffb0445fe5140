#!/bin/sh
# multipath.sh COMMAND [ARGUMENT...]
#
# Runs COMMAND inside tests/lib/uml.sh, with UML_NEXUSES=3, on a system with
# dm-multipath, Debian's multipath tools and a udevd, but no multipathd yet:
# that is started by the tests, as each wants it configured (cluster.py).
# Fetched packages appear to be installed, so that programs find their plugins
# and rules where they were built to look.  `multipath.sh packages` names those
# for tests/lib/fetch.sh.
#
# Everything it changes lies in memory.  Must never run anywhere else: it
# mounts over /etc and /usr.
set -e

# Without the initramfs that multipath-tools also wants to be in.
packages='dmsetup =multipath-tools =kpartx =udev'
if [ "$*" = packages ]; then
    echo "$packages"
    exit
fi
[ -d /run/target/pr ] || exit 1     # not inside tests/lib/uml.sh

/run/insmod overlay
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay etc /etc \
    -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work
fetched=$BUILD/debian
for directory in lib bin sbin share; do
    layers=/usr/$directory
    for layer in "$fetched/usr/$directory" "$fetched/$directory"; do
        [ ! -d "$layer" ] || layers=$layers:$layer
    done
    [ "$layers" = "/usr/$directory" ] || mount -r -t overlay "$directory" \
        "/usr/$directory" -o lowerdir="$layers"
done
/run/insmod dm-multipath dm-round-robin dm-service-time

mkdir -p /run/udev /etc/multipath
/lib/systemd/systemd-udevd --daemon 2>/run/udevd.log
udevadm trigger --type=devices --subsystem-match=block --action=add
udevadm settle
exec "$@"
