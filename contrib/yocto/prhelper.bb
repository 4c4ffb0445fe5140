# For Yocto (kirkstone and later), in a layer, with the tar file of `make dist`
# in files/ beside it. It must never be installed along with QEMU's tools on
# the target, which have the same file.
#
# Checked by tests/packages/recipes.sh: the licence's checksum, and that the
# two tasks, run by a shell with stubs, do what `make install` does. Not
# checked: bitbake.
SUMMARY = "SCSI persistent reservations for QEMU's virtual machines"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=ead7b6c334b4097579eecbea28b119b2"

PV = "1.0.0"
SRC_URI = "file://prhelper-${PV}.tar.gz"
# S is the default: later versions unpack to another place than earlier ones.

EXTRA_OEMAKE = "'CC=${CC}' 'CFLAGS=${CFLAGS}' 'CPPFLAGS=${CPPFLAGS}' 'LDFLAGS=${LDFLAGS}'"

do_compile() {
    oe_runmake
}

do_install() {
    oe_runmake install DESTDIR=${D} BINDIR=${bindir} MANDIR=${mandir} \
        DOCDIR=${docdir}/${BPN} UNITDIR=${systemd_system_unitdir} \
        COMPLETIONDIR=${datadir}/bash-completion/completions \
        LOCALSTATEDIR=${localstatedir}
}

FILES:${PN} += "${systemd_system_unitdir} ${datadir}/bash-completion"
