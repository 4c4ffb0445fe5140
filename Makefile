# SPDX-License-Identifier: MIT
# Builds, tests and installs both programs. Needs a C99 compiler, libc and the
# kernel's headers; `make static` also musl. What the tests need beyond that
# they fetch into build/. Nothing here may write outside of build/, but for
# ./qemu-pr-helper, ./qemu-pr-client and what `make install` is told to.
#
# To be given on the command line as usual: CC, CPPFLAGS, CFLAGS, LDFLAGS,
# DESTDIR, PREFIX (or prefix), BINDIR, MANDIR, UNITDIR, DOCDIR, LOCALSTATEDIR:
# the same for `make` as for `make install`, and after a change `make clean`.
# (SBINDIR makes no difference: libvirt, SELinux and AppArmor expect the
# helper in bin.)

VERSION = 0.1.0

PREFIX = $(or $(prefix),/usr/local)
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/prhelper
UNITDIR = $(PREFIX)/lib/systemd/system
LOCALSTATEDIR = /var

CFLAGS = -O2
STATIC_CC = musl-gcc
STRIP = strip

STANDARD = -std=c99 -pedantic -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64
WARNINGS = -Wall -Wextra -Wshadow -Wvla -Wconversion
DEFINES = -DVERSION='"$(VERSION)"' -DLOCALSTATEDIR='"$(LOCALSTATEDIR)"'
# The same bytes wherever they are built.
PLACELESS = '-fdebug-prefix-map=$(CURDIR)=.'
COMPILE = $(STANDARD) $(WARNINGS) $(PLACELESS) $(DEFINES) $(CPPFLAGS) $(CFLAGS)

MULTIPATH = $(addprefix multipath/,workers.c worker.c actions.c register.c \
	preempt.c sweep.c send.c map.c multipathd.c)
SOURCES = prhelper.c session.c client.c protocol.c sg_io.c sysfs.c options.c \
	listen.c daemon.c privdrop.c sandbox.c report.c trace.c log.c $(MULTIPATH)
CLIENT_SOURCES = qemu-pr-client.c check.c decode.c protocol.c sg_io.c sysfs.c \
	multipath/multipathd.c
HEADERS = prhelper.h protocol.h decode.h check.h kernel.h multipath/multipath.h
TEST_SOURCES = $(wildcard tests/*.c tests/fuzz/*.c)

# Another build of all of it beside the usual one: see check-sanitized.
BUILD = build
HELPER = qemu-pr-helper
CLIENT = qemu-pr-client

all: $(HELPER) $(CLIENT)

OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o)
CLIENT_OBJECTS = $(CLIENT_SOURCES:%.c=$(BUILD)/%.o)

# What a session would have to look up, it has from main; and what it maps
# is copied for each.
LINK = $(CC) $(CFLAGS) $(PLACELESS) -Wl,-z,now,-z,noseparate-code $(LDFLAGS)

$(HELPER): $(OBJECTS)
	$(LINK) -o $@ $(OBJECTS)

$(CLIENT): $(CLIENT_OBJECTS)
	$(CC) $(CFLAGS) $(PLACELESS) $(LDFLAGS) -o $@ $(CLIENT_OBJECTS)

$(BUILD)/%.o: %.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) -c -o $@ $<

# One call of the compiler sees all of the program, and leaves out what
# nothing calls. musl does not protect relocations of a static program: relro
# would only pad it. It has its place in memory from the linker anyhow, so no
# code has to find out where. Debian's musl-gcc does not find the kernel's
# headers.
STATIC_FLAGS = -static -fno-pie -no-pie -Os -flto -ffunction-sections -fdata-sections \
	-fno-asynchronous-unwind-tables \
	-Wl,--gc-sections,-z,noseparate-code,-z,norelro
KERNEL_HEADERS = -idirafter /usr/include \
	-idirafter /usr/include/$(shell $(STATIC_CC) -print-multiarch 2>&-)
STATIC = $(STATIC_CC) $(COMPILE) $(STATIC_FLAGS) $(KERNEL_HEADERS) $(LDFLAGS)

# What a target takes that the others do without: it says so in a sentence.
needs = @command -v $(firstword $(1)) >/dev/null || { echo \
	"make $@ needs $(firstword $(1)), from Debian's package $(2): please install it" >&2; \
	exit 1; }

static: $(BUILD)/static/qemu-pr-helper $(BUILD)/static/qemu-pr-client

$(BUILD)/static/qemu-pr-helper: $(SOURCES) $(HEADERS) Makefile
	$(call needs,$(STATIC_CC),musl-tools)
	@mkdir -p $(@D)
	$(STATIC) -o $@ $(SOURCES)
	$(STRIP) -R .comment $@

$(BUILD)/static/qemu-pr-client: $(CLIENT_SOURCES) $(HEADERS) Makefile
	$(call needs,$(STATIC_CC),musl-tools)
	@mkdir -p $(@D)
	$(STATIC) -o $@ $(CLIENT_SOURCES)
	$(STRIP) -R .comment $@

# A container image of the static helper.
image: $(BUILD)/image.tar

$(BUILD)/image.tar: $(BUILD)/static/qemu-pr-helper contrib/image.sh
	contrib/image.sh $< $(VERSION) $@

# The helper with a simulated SCSI target in place of the devices, so that
# all of it runs as an ordinary user.
SIMULATED = clock_gettime connect fstat fstat64 getsockopt ioctl nanosleep \
	open open64 ppoll prctl readlink stat stat64

# Tests have not the patience for a multipathd that does not answer.
IMPATIENT = -DMULTIPATHD_TIMEOUT='(3*SECOND)'

sim: $(BUILD)/sim/qemu-pr-helper

$(BUILD)/sim/qemu-pr-helper: $(OBJECTS:$(BUILD)/multipath/multipathd.o=$(BUILD)/sim/multipath/multipathd.o) \
		$(BUILD)/tests/sim_target.o
	$(CC) $(CFLAGS) $(SIMULATED:%=-Wl,--wrap=%) $(LDFLAGS) -o $@ $^

$(BUILD)/sim/multipath/multipathd.o: multipath/multipathd.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) $(IMPATIENT) -c -o $@ $<

# gcc drops what the linker wraps in when it optimises at link time.
$(BUILD)/static/sim/qemu-pr-helper: $(SOURCES) tests/sim_target.c $(HEADERS) \
		Makefile
	@mkdir -p $(@D)
	$(STATIC) -fno-lto $(IMPATIENT) $(SIMULATED:%=-Wl,--wrap=%) -o $@ \
		$(SOURCES) tests/sim_target.c

# The simulated helper with every system call wrapped, so that each can be
# made to fail: see tests/fault.c. Not optimised, so that each call stands in
# the function that its source has it in.
FAULT = $(BUILD)/fault
FAULT_OBJECTS = $(SOURCES:%.c=$(FAULT)/%.o) $(FAULT)/tests/sim_target.o \
	$(FAULT)/tests/fault.o

fault: $(FAULT)/qemu-pr-helper

$(FAULT)/qemu-pr-helper: $(FAULT_OBJECTS)
	nm $(FAULT)/tests/fault.o | sed -n 's/.* T __wrap_/-Wl,--wrap=/p' \
		>$(FAULT)/wrapped
	$(CC) $(CFLAGS) $(SIMULATED:%=-Wl,--wrap=%) @$(FAULT)/wrapped $(LDFLAGS) \
		-o $@ $(FAULT_OBJECTS)

$(FAULT)/tests/sim_target.o: DEFINES += \
	$(foreach name,$(SIMULATED),-D__wrap_$(name)=sim_$(name))

$(FAULT)/multipath/multipathd.o: DEFINES += $(IMPATIENT)

$(FAULT)/%.o: %.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) -O0 -c -o $@ $<

# Everything that needs no root and no SCSI, and in User-mode Linux the rest.
check: $(HELPER) $(CLIENT) sim fault $(if $(shell command -v $(STATIC_CC)),image)
	tests/run.sh

# A virtual machine's reservations through QEMU and the helper, on a disk and
# on a multipath map.
check-qemu: $(HELPER)
	tests/qemu.sh
	tests/qemu.sh multipath

# libvirt's own helper for each virtual machine, beside QEMU's.
check-libvirt: $(HELPER)
	tests/libvirt.sh

# A guest with a reservation moves from host to host, with the QEMU of Debian
# sid; as root.
check-migration: $(HELPER)
	tests/migration.sh

# Multipath maps with Debian's multipathd, and mpathpersist beside the helper.
check-multipath: $(HELPER) $(CLIENT)
	tests/run.sh multipath reference

# The same with paths that are iSCSI sessions, whose connections are cut.
check-transport: $(HELPER)
	tests/run.sh transport

# README's commands, and QEMU and multipath-tools, of another Debian; as root.
check-debian:
	tests/check-debian.sh $(SUITE)

# What a virtual machine that is not ours any more would try.
check-hostile: sim
	tests/run.sh hostile

# The units and scripts of contrib/ under their supervisors.
check-supervisors: $(HELPER)
	tests/run.sh supervisors

# All tests of the static binary.
check-static: static $(BUILD)/static/sim/qemu-pr-helper image
	RANDOM_COMMANDS=300 HELPER=$(BUILD)/static/qemu-pr-helper \
		CLIENT=$(BUILD)/static/qemu-pr-client \
		SIM_HELPER=$(BUILD)/static/sim/qemu-pr-helper \
		tests/run.sh host kernel

# The tests on an emulated aarch64 machine, with glibc and with musl.
check-aarch64:
	tests/aarch64.sh

# Cross-built for six machines, big-endian and 32-bit ones among them, and run
# under qemu-user.
cross-check:
	tests/cross.sh

# The same bytes from the same source, and a tar file that needs no git.
check-reproducible:
	tests/reproducible.sh

# The Debian package, into a Debian of its own and out of it; as root.
check-deb:
	tests/deb.sh

# The recipes of contrib/, as far as that goes without their distributions.
check-recipes:
	tests/recipes.sh

# The tests that need no other kernel, with the sanitizers.
SANITIZERS = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
check-sanitized:
	$(MAKE) BUILD=build/sanitized HELPER=build/sanitized/qemu-pr-helper \
		RANDOM_COMMANDS=300 CLIENT=build/sanitized/qemu-pr-client \
		CFLAGS='$(SANITIZERS)' CPPFLAGS=-DSANDBOX=false \
		build/sanitized/qemu-pr-helper build/sanitized/sim/qemu-pr-helper \
		build/sanitized/fault/qemu-pr-helper build/sanitized/qemu-pr-client
	CLIENT=build/sanitized/qemu-pr-client \
		FAULT_HELPER=build/sanitized/fault/qemu-pr-helper \
		HELPER=build/sanitized/qemu-pr-helper \
		SIM_HELPER=build/sanitized/sim/qemu-pr-helper tests/run.sh host

# The parsers and the conversation: the corpus, then FUZZ_SECONDS (60) of new
# inputs for all of them, by libfuzzer or afl.
FUZZ_ENGINE = libfuzzer
fuzz:
	tests/fuzz.sh replay
	tests/fuzz.sh $(FUZZ_ENGINE)

# Hundreds of clients, hostile ones among them, for SOAK_MINUTES (10). Also
# SOAK_SEED, SOAK_OPTIONS (the helper's) and SIM_HELPER.
soak: sim
	tests/fetch.sh python3 python3-pytest -- \
		sh -c 'exec "$$PYTHON" -B tests/soak.py'

# What the tests execute of the two files that decide, at least 95 % of it.
coverage: $(HELPER) $(CLIENT)
	tests/coverage.sh

# The sources without a word from those who read them most closely.
LINTED = $(sort $(SOURCES) $(CLIENT_SOURCES)) $(TEST_SOURCES)
CONTRIB_SCRIPTS = contrib/openrc/qemu-pr-helper \
	$(wildcard contrib/runit/*/* contrib/s6/*/run contrib/s6/*/data/check)
lint:
	clang-format --dry-run -Werror $(LINTED) $(HEADERS) tests/fuzz/fuzz.h
	cppcheck --quiet --std=c99 --enable=warning,performance,portability \
		--error-exitcode=1 -D_GNU_SOURCE $(LINTED)
	for file in $(LINTED); do clang-tidy --quiet $$file -- $(STANDARD) \
		$(DEFINES) || exit 1; done
	shellcheck -s sh -e SC2034,SC2154 contrib/alpine/APKBUILD
	shellcheck .ci/run contrib/*.sh contrib/debian/prhelper.p* tests/*.sh \
		tests/*/*.sh $(CONTRIB_SCRIPTS)
	mandoc -Tlint man/*.[18]

# The helper, the stock one and the least that there could be, side by side.
BENCHED = ioctl fstat fstat64
BENCH = build/bench
bench: $(HELPER) static $(BENCH)/bench $(BENCH)/hang.so \
		$(BENCH)/qemu-pr-helper $(BENCH)/qemu-pr-helper-static
	tests/fetch.sh python3 -- sh -c 'exec "$$PYTHON" tests/bench.py'

$(BENCH)/bench: tests/bench.c Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) -o $@ $<

$(BENCH)/hang.so: tests/bench_device.c Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) -D__wrap_ioctl=ioctl -shared -fPIC -o $@ $<

$(BENCH)/qemu-pr-helper: $(OBJECTS) $(BUILD)/tests/bench_device.o
	@mkdir -p $(@D)
	$(LINK) $(BENCHED:%=-Wl,--wrap=%) -o $@ $^

$(BENCH)/qemu-pr-helper-static: $(SOURCES) tests/bench_device.c $(HEADERS) \
		Makefile
	@mkdir -p $(@D)
	$(STATIC) -fno-lto $(BENCHED:%=-Wl,--wrap=%) -o $@ $(SOURCES) \
		tests/bench_device.c

# A cluster's life on a SCSI target in User-mode Linux, step by step.
demo: $(HELPER) $(CLIENT)
	tests/demo.sh

# What is installed, and where to. For the static programs: PROGRAMS='
# build/static/qemu-pr-helper build/static/qemu-pr-client'.
PROGRAMS = $(HELPER) $(CLIENT)
MANUALS = $(wildcard man/*.[18])
UNITS = $(wildcard contrib/systemd/*.service contrib/systemd/*.socket)
TEXTS = $(MANUALS) $(UNITS) LICENSE
INSTALLED_PROGRAMS = $(addprefix $(BINDIR)/,$(notdir $(PROGRAMS)))
INSTALLED_TEXTS = $(foreach page,$(MANUALS),\
	$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))) \
	$(addprefix $(UNITDIR)/,$(notdir $(UNITS))) $(DOCDIR)/LICENSE
# Manuals and units say where things really are.
PATHS = -e 's|/usr/bin/|$(BINDIR)/|g' -e 's|/var/run/|$(LOCALSTATEDIR)/run/|g'

install: $(PROGRAMS)
	umask 022; for file in $(INSTALLED_PROGRAMS) $(INSTALLED_TEXTS); do \
		mkdir -p "$(DESTDIR)$${file%/*}" || exit 1; done
	install -m 755 $(PROGRAMS) "$(DESTDIR)$(BINDIR)/"
	umask 022; set -- $(INSTALLED_TEXTS); for file in $(TEXTS); do \
		rm -f "$(DESTDIR)$$1"; \
		sed $(PATHS) $$file >"$(DESTDIR)$$1" || exit 1; shift; done

uninstall:
	for file in $(INSTALLED_PROGRAMS) $(INSTALLED_TEXTS); do \
		rm -f "$(DESTDIR)$$file" || exit 1; done
	rmdir "$(DESTDIR)$(DOCDIR)" 2>/dev/null || :

# What is committed, as a tar file that depends on nothing else.
DIST = prhelper-$(VERSION)
dist:
	$(call needs,git,git)
	@[ -e .git ] || { echo "make dist packs what is committed: it needs a" \
		"git repository, and this is none" >&2; exit 1; }
	@mkdir -p build
	git -c safe.directory='$(CURDIR)' -c tar.umask=0022 archive \
		--prefix=$(DIST)/ -o build/$(DIST).tar HEAD
	gzip -9nf build/$(DIST).tar

# A Debian package that takes the place of qemu-system-common's helper, and
# its sources, in build/deb.
DEB = build/deb/$(DIST)
deb:
	$(call needs,dpkg-buildpackage,dpkg-dev)
	$(call needs,dh,debhelper)
	rm -rf build/deb
	mkdir -p $(DEB)
	tar --exclude=./.git --exclude=./build $(PROGRAMS:%=--exclude=./%) \
		-czf build/deb/prhelper_$(VERSION).orig.tar.gz .
	tar -C $(DEB) -xzf build/deb/prhelper_$(VERSION).orig.tar.gz
	cp -r contrib/debian $(DEB)/debian
	cd $(DEB) && env -u MAKEFLAGS dpkg-buildpackage -us -uc

# What was fetched stays; distclean takes that, too.
clean:
	rm -rf qemu-pr-helper qemu-pr-client $(filter-out build/debian build/apt \
		build/roots,$(wildcard build/*))

distclean:
	rm -rf qemu-pr-helper qemu-pr-client build

.PHONY: all static image sim fault check check-hostile check-static \
	check-sanitized check-aarch64 cross-check check-multipath check-supervisors \
	check-transport check-reproducible check-deb check-debian check-recipes \
	check-qemu check-libvirt check-migration fuzz soak coverage lint bench \
	demo install uninstall dist deb clean distclean
