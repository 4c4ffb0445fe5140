#!/bin/sh
# recipes.sh
#
# The recipes of contrib/ for Alpine, Buildroot and Yocto, without these: runs
# what they would have run, with stubs for what those define, and shows that
# each installs what `make install` does, of the version that the Makefile
# has. What Debian's package installs is in deb.sh.
#
# Must write nothing outside the temporary directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
unset MAKEFLAGS MFLAGS MAKEOVERRIDES
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

fail() {
    echo "recipes.sh: $*" >&2
    exit 1
}

version=$(sed -n 's/^VERSION = //p' "$top/Makefile")

# sources NAME: a copy to build in.
sources() {
    mkdir -p "$work/$1/source"
    (cd "$top" && tar --exclude=./.git --exclude=./build \
        --exclude=./qemu-pr-helper -cf - .) | tar -xf - -C "$work/$1/source"
}

# installed NAME: what a recipe has put into NAME/root, with modes.
installed() {
    (cd "$work/$1/root" && find . -type f -printf '%p %m\n' | sort)
}

# same NAME EXPECTED: did the recipe install that?
same() {
    installed "$2" >"$work/expected"
    installed "$1" | diff "$work/expected" - >&2 ||
        fail "$1 does not install what make install does"
    "$work/$1/root/usr/bin/qemu-pr-helper" -V | grep -qw "$version" ||
        fail "$1: the program's version is another"
    echo "$1: installs what make install does"
}

for name in all no-units; do
    sources $name
    set --
    [ $name = all ] || set -- UNITS=
    make -s -C "$work/$name/source" install DESTDIR="$work/$name/root" \
        PREFIX=/usr "$@"
done

sources alpine
(
    # shellcheck disable=SC2034 # abuild's, for the recipe
    CFLAGS=-Os CPPFLAGS='' LDFLAGS='' pkgdir=$work/alpine/root
    # shellcheck source=/dev/null
    . "$top/contrib/alpine/APKBUILD"
    # shellcheck disable=SC2154 # the recipe's
    [ "$pkgver" = "$version" ] || fail "alpine: the version is $pkgver"
    cd "$work/alpine/source"
    build >/dev/null
    package >/dev/null
)
same alpine no-units

# buildroot INIT: with Buildroot's names for things. The recipe is read as it
# is, and its commands run as Buildroot runs them, in a rule for a stamp.
buildroot() {
    sources "$1"
    cat >"$work/$1/Makefile" <<'END'
BR2_DL_DIR = /nowhere
TARGET_MAKE_ENV = PATH="$(PATH)"
TARGET_CONFIGURE_OPTS = CC="cc" CFLAGS="-Os" CPPFLAGS="" LDFLAGS=""
define generic-package
$(SOURCE)/.stamp_built:
	$$(PRHELPER_BUILD_CMDS)
$(SOURCE)/.stamp_target_installed: $(SOURCE)/.stamp_built
	$$(PRHELPER_INSTALL_TARGET_CMDS)
endef
include $(RECIPE)
$(if $(filter $(VERSION),$(PRHELPER_VERSION)),,$(error another version))
END
    make -s -f "$work/$1/Makefile" RECIPE="$top/contrib/buildroot/prhelper.mk" \
        VERSION="$version" SOURCE="$work/$1/source" \
        TARGET_DIR="$work/$1/root" BR2_INIT_SYSTEMD="$2" \
        "$work/$1/source/.stamp_target_installed"
}
buildroot buildroot-systemd y
same buildroot-systemd all
buildroot buildroot-busybox ''
same buildroot-busybox no-units

recipe=$top/contrib/yocto/prhelper.bb
grep -q "^PV = \"$version\"\$" "$recipe" || fail 'yocto: another version'
grep -q "md5=$(md5sum <"$top/LICENSE" | cut -d ' ' -f 1)\"" "$recipe" ||
    fail 'yocto: the licence is another'
sources yocto
sed -n '/^do_[a-z]*() {$/,/^}$/p' "$recipe" >"$work/yocto/tasks"
(
    # shellcheck disable=SC2034 # bitbake's, for the recipe
    D=$work/yocto/root bindir=/usr/bin mandir=/usr/share/man BPN=prhelper \
        docdir=/usr/share/doc systemd_system_unitdir=/usr/lib/systemd/system \
        localstatedir=/var datadir=/usr/share
    # shellcheck disable=SC2317 # the tasks call it
    oe_runmake() {
        make -s CC=cc CFLAGS=-Os CPPFLAGS= LDFLAGS= "$@"
    }
    # shellcheck source=/dev/null
    . "$work/yocto/tasks"
    cd "$work/yocto/source"
    do_compile
    do_install
)
same yocto all
