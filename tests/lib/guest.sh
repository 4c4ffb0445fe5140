#!/bin/sh
# guest.sh [multipath] SCRIPT [ARGUMENT...]
#
# For tests with the real client: boots User-mode Linux with a SCSI target, and
# runs SCRIPT, in Python, in it, with what is in this directory on its path.
# Behind its ARGUMENTs it gets the helper under test (HELPER, ./qemu-pr-helper),
# and QEMU with the options that start a virtual machine of ours, whose disk is
# for SCRIPT to add: see guest.py. With multipath, that kernel can make maps
# (multipath.sh). QEMU, the guest's kernel and what goes into its initramfs are
# fetched if not installed.
#
# Must work for any user and without KVM, and must write nothing outside the
# build directory.
set -eu

lib=$(cd "$(dirname "$0")" && pwd)
top=${lib%/tests/lib}
BUILD=${BUILD:-$top/build}
"$lib/uml.sh" || {
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
}
packages='qemu-system-x86 busybox-static sg3-utils xz-utils python3
    =linux-image-cloud-amd64'
[ "$1" != multipath ] || packages="$packages $("$lib/multipath.sh" packages)"
# shellcheck disable=SC2086 # words
[ -n "${GUEST_FETCHED:-}" ] ||
    GUEST_FETCHED=1 exec "$lib/fetch.sh" $packages -- "$0" "$@"
if [ "$1" = multipath ]; then
    shift
    set -- "$lib/multipath.sh" "$PYTHON" "$@"
    UML_NEXUSES=${UML_NEXUSES:-3}
    export UML_NEXUSES
else
    set -- "$PYTHON" "$@"
fi
PYTHONPATH=$lib${PYTHONPATH:+:$PYTHONPATH}

# The newest kernel that there is.
for root in "$BUILD/debian" ''; do
    modules=$(find "$root/usr/lib/modules" "$root/lib/modules" -maxdepth 1 \
        -name '*-cloud-amd64' 2>/dev/null | sort -V | tail -n 1)
    [ -z "$modules" ] || break
done
kernel=$modules/vmlinuz
[ -e "$kernel" ] || kernel=$root/boot/vmlinuz-${modules##*/}

ram=$BUILD/qemu/initramfs
rm -rf "$ram"
mkdir -p "$ram/bin" "$ram/lib" "$ram/modules" "$ram/dev" "$ram/proc" "$ram/sys"
ln -s lib "$ram/lib64"
cp "$lib/guest-init.sh" "$ram/init"
chmod 755 "$ram/init"
cp "$(command -v busybox)" "$(command -v sg_persist)" "$ram/bin/"
for applet in sh mount insmod stty sleep dd poweroff; do
    ln -s busybox "$ram/bin/$applet"
done
ldd "$ram/bin/sg_persist" | grep -o '/[^ ]*' | while read -r library; do
    cp "$library" "$ram/lib/"
done

# add_module NAME: copies a module, after those that it depends on, and lists
# it in modules/order.  One that does not exist is built into the kernel.
add_module() (
    file=$(find "$modules/kernel" \
        -name "$(echo "$1" | sed 's/[-_]/[-_]/g').ko*")
    name=$1.ko
    if [ -z "$file" ] || [ -e "$ram/modules/$name" ]; then
        return
    fi
    case $file in
    *.xz) xz -dc "$file" ;;
    *) cat "$file" ;;
    esac >"$ram/modules/$name"
    for needed in $(tr '\0' '\n' <"$ram/modules/$name" |
        sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$needed"
    done
    echo "$name" >>"$ram/modules/order"
)
for module in virtio_pci virtio_scsi sd_mod sg; do
    add_module $module
done
(cd "$ram" && find . | busybox cpio -o -H newc) >"$ram.img" 2>/dev/null

# A fetched QEMU finds what was fetched with it, but not what was installed.
QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu
UML_MEMORY=${UML_MEMORY:-768M}
UML_TIMEOUT=${UML_TIMEOUT:-500}
export BUILD PYTHONPATH QEMU_MODULE_DIR UML_MEMORY UML_TIMEOUT
trap 'kill "$pid"; exit 130' INT TERM HUP
"$lib/uml.sh" "$@" \
    "${HELPER:-$top/qemu-pr-helper}" qemu-system-x86_64 \
    -L "$BUILD/debian/usr/share/qemu" -L "$BUILD/debian/usr/share/seabios" \
    -L /usr/share/qemu -L /usr/share/seabios \
    -accel tcg -m 192 -nodefaults -display none -no-reboot \
    -kernel "$kernel" -initrd "$ram.img" \
    -append 'console=ttyS0 quiet panic=1' &
pid=$!
status=0
wait "$pid" || status=$?
case $status in
124 | 125) echo '0 passed, 1 failed, 0 skipped' ;;
esac
exit $status
