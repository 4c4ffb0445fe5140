#!/bin/sh
# aarch64.sh
#
# Runs the tests on aarch64: builds the helper with glibc and, static, with
# musl, boots QEMU with Debian's kernel, and runs in it what
# aarch64-init.sh names.  An emulated machine, and not only qemu-user,
# which installs no seccomp filter and so would prove nothing of sandbox.c.
# The last line is "N passed, N failed, N skipped".
#
# Cross compiler and QEMU are fetched if not installed; Debian's arm64 packages
# always, into build/debian/arm64.
#
# Must work for any user and without KVM, must write nothing outside the build
# directory, and must leave no process behind.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build}
[ -n "${AARCH64_FETCHED:-}" ] ||
    AARCH64_FETCHED=1 exec "$top/tests/lib/fetch.sh" gcc-aarch64-linux-gnu \
        qemu-system-arm busybox-static -- "$0"

# fetch PACKAGE...: with an apt of that architecture on which nothing is
# installed.
arm64=$BUILD/debian/arm64
root=$arm64/debian
mkdir -p "$arm64"
: >"$arm64/status"
cat >"$arm64/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State::status "$arm64/status";
Dir::State::Lists "$arm64/apt/lists";
END
fetch() {
    BUILD=$arm64 APT_CONFIG=$arm64/apt.conf "$top/tests/lib/fetch.sh" "$@"
}
fetch python3-pytest:arm64 =busybox-static:arm64 =util-linux:arm64 \
    =libcap-ng0:arm64 =libc6-dev:arm64 =linux-libc-dev:arm64 \
    =musl-dev:arm64 =linux-image-cloud-arm64:arm64
# An empty package; see guest.sh.
image=$(readlink "$root/usr/share/doc/linux-image-cloud-arm64")
fetch "=$image:arm64"

out=$BUILD/aarch64
include=$root/usr/include
mkdir -p "$out"
sed "s|/usr/|$root/usr/|g" "$root/usr/lib/aarch64-linux-musl/musl-gcc.specs" \
    >"$out/musl.specs"
make -C "$top" BUILD="$out" HELPER="$out/qemu-pr-helper" \
    CLIENT="$out/qemu-pr-client" \
    CC="aarch64-linux-gnu-gcc --sysroot=$root" \
    STATIC_CC="aarch64-linux-gnu-gcc -specs=$out/musl.specs" \
    KERNEL_HEADERS="-idirafter $include -idirafter $include/aarch64-linux-gnu" \
    STRIP=aarch64-linux-gnu-strip \
    all sim static "$out/static/sim/qemu-pr-helper" \
    "$out/static/sim/qemu-pr-client"

# The initramfs: what was fetched, and an overlay where the programs stand as
# they do after make.
ram=$out/initramfs
rm -rf "$ram"
mkdir -p "$ram/bin" "$ram/dev" "$ram/etc" "$ram/prhelper/build/sim" \
    "$ram/prhelper/build/static/sim"
cp "$top/tests/machines/aarch64-init.sh" "$ram/init"
chmod 755 "$ram/init"
ln -s busybox "$ram/bin/sh"
printf '%s\n' 'root:x:0:0::/:' 'nobody:x:65534:65534::/:' >"$ram/etc/passwd"
printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$ram/etc/group"
cp -r "$top/tests" "$ram/prhelper"
cp "$out/qemu-pr-helper" "$out/qemu-pr-client" "$ram/prhelper"
cp "$out/static/qemu-pr-client" "$ram/prhelper/build/static"
for program in sim static static/sim; do
    cp "$out/$program/qemu-pr-helper" "$ram/prhelper/build/$program"
done
for program in sim static/sim; do
    cp "$out/$program/qemu-pr-client" "$ram/prhelper/build/$program"
done
pack() {
    busybox cpio -o -H newc 2>/dev/null
}
{
    (cd "$root" && find bin etc lib sbin usr \( -path lib/modules \
        -o -path usr/include -o -path usr/share -o -name '*.a' \) -prune \
        -o -print | pack)
    (cd "$ram" && find . | pack)
} >"$ram.img"

timeout -k 5 "${AARCH64_TIMEOUT:-1200}" qemu-system-aarch64 -M virt \
    -cpu max,pauth-impdef=on -accel tcg -smp 2 -m 1G -nodefaults \
    -display none -no-reboot -serial stdio \
    -kernel "$root/boot/vmlinuz-${image#linux-image-}" -initrd "$ram.img" \
    -append 'console=ttyAMA0 quiet panic=1' </dev/null >"$out/console" 2>&1 &
pid=$!
trap 'kill "$pid"; exit 130' INT TERM HUP
wait "$pid" || echo "aarch64.sh: QEMU ended with status $?" >>"$out/console"
cat "$out/console"
total=$(grep '^[0-9]* passed, [0-9]* failed, [0-9]* skipped$' "$out/console" |
    tail -n 1)
echo "${total:-0 passed, 1 failed, 0 skipped}"
case $total in
*', 0 failed, '*) ;;
*) exit 1 ;;
esac
