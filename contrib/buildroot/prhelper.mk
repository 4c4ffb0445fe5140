################################################################################
#
# prhelper: for Buildroot, with Config.in beside it as package/prhelper or in
# an external tree. Put the tar file of `make dist` into the download
# directory's prhelper/. It must never be selected along with QEMU's tools,
# which have the same file, for the target.
#
# Checked by tests/packages/recipes.sh with stubs for what Buildroot defines:
# the syntax, and that the two commands do what `make install` does. Not
# checked: Buildroot itself.
#
################################################################################

PRHELPER_VERSION = 1.0.0
PRHELPER_SITE = $(BR2_DL_DIR)/prhelper
PRHELPER_SITE_METHOD = file
PRHELPER_LICENSE = MIT
PRHELPER_LICENSE_FILES = LICENSE

PRHELPER_MAKE = $(TARGET_MAKE_ENV) $(MAKE) $(TARGET_CONFIGURE_OPTS) -C $(@D)

define PRHELPER_BUILD_CMDS
	$(PRHELPER_MAKE)
endef

define PRHELPER_INSTALL_TARGET_CMDS
	$(PRHELPER_MAKE) install DESTDIR=$(TARGET_DIR) PREFIX=/usr \
		$(if $(BR2_INIT_SYSTEMD),,UNITS=)
endef

$(eval $(generic-package))
