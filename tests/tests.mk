# SPDX-License-Identifier: MIT
# Everything that tests; the Makefile includes this. What the tests need beyond
# what was built, they fetch into build/.

# The helper with a simulated SCSI target in place of the devices, so that
# all of it runs as an ordinary user.
SIMULATED = clock_gettime connect fstat fstat64 getsockopt ioctl nanosleep \
	open open64 ppoll prctl readlink stat stat64

# Tests have not the patience for a multipathd that does not answer.
IMPATIENT = -DMULTIPATHD_TIMEOUT='(3*SECOND)'

sim: $(BUILD)/sim/qemu-pr-helper $(BUILD)/sim/qemu-pr-client

# The client, with the same devices in place of the machine's.
$(BUILD)/sim/qemu-pr-client: $(CLIENT_OBJECTS) $(BUILD)/tests/lib/sim_target.o
	$(call run,LINK)$(CC) $(CFLAGS) $(SIMULATED:%=-Wl,--wrap=%) $(LDFLAGS) \
		-o $@ $^

MULTIPATHD = $(BUILD)/multipath/multipathd.o
SIM_MULTIPATHD = $(BUILD)/sim/multipath/multipathd.o
$(BUILD)/sim/qemu-pr-helper: $(OBJECTS:$(MULTIPATHD)=$(SIM_MULTIPATHD)) \
		$(BUILD)/tests/lib/sim_target.o
	$(call run,LINK)$(CC) $(CFLAGS) $(SIMULATED:%=-Wl,--wrap=%) $(LDFLAGS) \
		-o $@ $^

$(SIM_MULTIPATHD): multipath/multipathd.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,CC)$(CC) $(COMPILE) $(IMPATIENT) -c -o $@ $<

# gcc drops what the linker wraps in when it optimises at link time.
$(BUILD)/static/sim/qemu-pr-helper: $(SOURCES)
$(BUILD)/static/sim/qemu-pr-client: $(CLIENT_SOURCES)
$(BUILD)/static/sim/qemu-pr-helper $(BUILD)/static/sim/qemu-pr-client: \
		tests/lib/sim_target.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,STATIC)$(STATIC) -fno-lto $(IMPATIENT) \
		$(SIMULATED:%=-Wl,--wrap=%) -o $@ $(filter %.c,$^)

# The simulated helper with every system call wrapped, so that each can be
# made to fail: see tests/lib/fault.c. Not optimised, so that each call stands
# in the function that its source has it in.
FAULT = $(BUILD)/fault
FAULT_OBJECTS = $(SOURCES:%.c=$(FAULT)/%.o) $(FAULT)/tests/lib/sim_target.o \
	$(FAULT)/tests/lib/fault.o

fault: $(FAULT)/qemu-pr-helper

$(FAULT)/qemu-pr-helper: $(FAULT_OBJECTS)
	@nm $(FAULT)/tests/lib/fault.o | \
		sed -n 's/.* T __wrap_/-Wl,--wrap=/p' >$(FAULT)/wrapped
	$(call run,LINK)$(CC) $(CFLAGS) $(SIMULATED:%=-Wl,--wrap=%) \
		@$(FAULT)/wrapped $(LDFLAGS) -o $@ $^

$(FAULT)/tests/lib/sim_target.o: DEFINES += \
	$(foreach name,$(SIMULATED),-D__wrap_$(name)=sim_$(name))

$(FAULT)/multipath/multipathd.o: DEFINES += $(IMPATIENT)

$(FAULT)/%.o: %.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,CC)$(CC) $(COMPILE) -O0 -c -o $@ $<

# What takes the reservations of a program that knows no helper to one.
THROUGH = $(BUILD)/tests/foreign/through-helper.so

$(THROUGH): tests/foreign/through-helper.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,LINK)$(CC) $(COMPILE) -fPIC -shared $(LDFLAGS) -o $@ $<

# Another build of all of it beside the usual one.
elsewhere = $(MAKE) BUILD=build/$(1) HELPER=build/$(1)/qemu-pr-helper \
	CLIENT=build/$(1)/qemu-pr-client

## Tests
## check: what needs no root and no SCSI, and the kernel tests
## check T=NAME: only test_NAME.py, or tests with NAME in the name
IMAGE = $(if $(shell command -v $(STATIC_CC)),image)
ifeq ($(T),)
NEEDED = fault $(IMAGE)
else
TESTS := $(shell tests/lib/find.sh $(T))
ifeq ($(MAKECMDGOALS)$(TESTS),check)
$(error no such test: $(T))
endif
NEEDED = $(if $(filter tests/host/test_fault.py%,$(TESTS)),fault) \
	$(if $(findstring test_image,$(TESTS))$(findstring test_pod,$(TESTS)),image) \
	$(if $(filter tests/foreign/%,$(TESTS)),$(THROUGH))
endif
check: $(HELPER) $(CLIENT) sim $(NEEDED)
	tests/run.sh $(TESTS)

## check-host: the one half of it, which is tests/host
check-host: $(HELPER) $(CLIENT) sim fault
	tests/run.sh host

## check-kernel: the other, in User-mode Linux
check-kernel: $(HELPER) $(CLIENT) sim $(IMAGE)
	tests/run.sh kernel

## check-hostile: what a client that is not QEMU any more would try
check-hostile: sim
	tests/run.sh hostile

## check-multipath: maps with a real multipathd, beside mpathpersist
check-multipath: $(HELPER) $(CLIENT) $(IMAGE)
	tests/run.sh multipath reference

## check-transport: the same with iSCSI paths that are cut
check-transport: $(HELPER) $(CLIENT)
	tests/run.sh transport

## check-foreign: other people's suites, through QEMU's helper and ours
check-foreign: $(HELPER) $(THROUGH)
	tests/run.sh foreign

## check-qemu: a guest's reservations through QEMU, on disk and map
check-qemu: $(HELPER)
	tests/lib/guest.sh tests/qemu/chain.py
	tests/lib/guest.sh multipath tests/qemu/chain.py --multipath

## check-libvirt: libvirt's managed='yes', beside QEMU's helper
check-libvirt: $(HELPER)
	tests/lib/fetch.sh libvirt-daemon libvirt-clients -- \
		tests/lib/guest.sh multipath tests/libvirt/life.py

## check-migration: a guest with a reservation moves, sid's QEMU (root)
check-migration: $(HELPER)
	tests/qemu/migration.sh

## check-supervisors: contrib/ under systemd, OpenRC, runit and s6
check-supervisors: $(HELPER)
	tests/run.sh supervisors

## check-docs: what the documents say that a command can check
check-docs: $(HELPER) $(CLIENT) $(if $(IMAGE),static)
	tests/run.sh docs

## Tests of other builds
## check-warnings: neither compiler has anything to say
check-warnings:
	$(call elsewhere,warnings/gcc) CC=gcc CFLAGS='-O2 -Werror' all static
	$(call elsewhere,warnings/clang) CC=clang CFLAGS='-O2 -Werror' all

# What is about the build, or has a program of its own, is the same there.
ONCE = PYTEST_ADDOPTS='$(patsubst %,--ignore=tests/host/test_%.py,$(1) \
	headers install make oci)'

## check-static: check, of the static binary
check-static: static $(BUILD)/static/sim/qemu-pr-helper \
		$(BUILD)/static/sim/qemu-pr-client image
	$(call ONCE,fault) RANDOM_COMMANDS=300 HELPER=$(BUILD)/static/qemu-pr-helper \
		CLIENT=$(BUILD)/static/qemu-pr-client \
		SIM_HELPER=$(BUILD)/static/sim/qemu-pr-helper \
		tests/run.sh host kernel

## check-sanitized: check-host with the sanitizers
SANITIZED = build/sanitized
SANITIZERS = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
check-sanitized:
	$(call elsewhere,sanitized) CFLAGS='$(SANITIZERS)' \
		CPPFLAGS=-DSANDBOX=false all sim fault
	$(call ONCE) RANDOM_COMMANDS=300 HELPER=$(SANITIZED)/qemu-pr-helper \
		CLIENT=$(SANITIZED)/qemu-pr-client \
		SIM_HELPER=$(SANITIZED)/sim/qemu-pr-helper \
		FAULT_HELPER=$(SANITIZED)/fault/qemu-pr-helper tests/run.sh host

## check-cross: built for six machines, and run under qemu-user
check-cross:
	tests/machines/cross.sh

## check-aarch64: on an emulated machine, with glibc and with musl
check-aarch64:
	tests/machines/aarch64.sh

## check-debian: on other Debians, SUITE='trixie sid' (root)
SUITE = trixie sid
check-debian:
	tests/packages/check-debian.sh $(SUITE)

## check-deb: the package takes QEMU's place, gives it back (root)
check-deb:
	tests/packages/deb.sh

## check-recipes: contrib/'s for Alpine, Buildroot, Yocto, without them
check-recipes:
	tests/packages/recipes.sh

## check-reproducible: the same bytes from the same source; without git
check-reproducible:
	tests/packages/reproducible.sh

## check-release: make release, twice; and that it can be verified
check-release:
	tests/packages/check-release.sh

## Tests of another kind
## check-lint: clang-format, -tidy, cppcheck, shellcheck, mandoc
LINTED = $(sort $(SOURCES) $(CLIENT_SOURCES)) $(wildcard tests/*/*.c)
CONTRIB_SCRIPTS = contrib/openrc/qemu-pr-helper \
	$(wildcard contrib/runit/*/* contrib/s6/*/run contrib/s6/*/data/check)
check-lint: $(OBJECTS) $(CLIENT_OBJECTS)
	tests/lib/order.sh $(OBJECTS)
	tests/lib/order.sh $(CLIENT_OBJECTS)
	clang-format --dry-run -Werror $(LINTED) $(HEADERS) tests/fuzz/fuzz.h
	cppcheck --quiet --std=c99 --enable=warning,performance,portability \
		--error-exitcode=1 -D_GNU_SOURCE $(LINTED)
	printf '%s\n' $(LINTED) | xargs -P 2 -I FILE \
		clang-tidy --quiet FILE -- $(STANDARD) $(DEFINES)
	shellcheck -s sh -e SC2034,SC2154 contrib/alpine/APKBUILD
	shellcheck .ci/run contrib/*.sh contrib/examples/*.sh contrib/bash-completion/* \
		contrib/debian/prhelper.p* tests/*.sh tests/*/*.sh $(CONTRIB_SCRIPTS)
	mandoc -Tlint man/*.[18]
	! find *.[ch] admin contrib multipath tests -name '*.[chs]*' -o -name '*.py' | \
		sed 's|.*/||' | sort | uniq -d | grep . # two files of one name
	! grep -o '^def \w*' tests/*/*.py | sort | uniq -d | grep . # or two tests

## check-fuzz: the corpus, then FUZZ_SECONDS=60 of new inputs
FUZZ_ENGINE = libfuzzer
check-fuzz:
	tests/fuzz/fuzz.sh replay
	tests/fuzz/fuzz.sh $(FUZZ_ENGINE)

## check-soak: hundreds of clients, for SOAK_MINUTES=10
# Also SOAK_SEED, SOAK_OPTIONS (the helper's) and SIM_HELPER.
check-soak: sim
	tests/lib/fetch.sh python3 python3-pytest -- \
		sh -c 'exec "$$PYTHON" -B tests/soak/soak.py'

## check-coverage: of protocol.c and sg_io.c, at least 95 %
check-coverage: $(HELPER) $(CLIENT)
	tests/host/coverage.sh

## check-all: as CI does; not -aarch64, -foreign, -release (root)
FIRST = check-warnings check
THEN = $(addprefix check-,docs static sanitized hostile multipath transport \
	qemu libvirt supervisors cross coverage debian migration) demo
MEANWHILE = $(addprefix check-,lint reproducible deb recipes fuzz soak)
ALL = $(FIRST) $(THEN) $(MEANWHILE)
check-all:
	MEANWHILE='$(MEANWHILE)' tests/check-all.sh $(FIRST) -- $(THEN)

## lint, fuzz, soak: older names, and so are coverage and cross-check
lint: check-lint
fuzz: check-fuzz
soak: check-soak
coverage: check-coverage
cross-check: check-cross

## See it work
## demo: a cluster's life on a real SCSI target, step by step
demo:
	@$(MAKE) -s $(HELPER) $(CLIENT)
	@tests/demo/demo.sh

## demo-migration: a guest with a reservation moves, in sid's QEMU (root)
demo-migration:
	@$(MAKE) -s $(HELPER)
	@tests/demo/demo.sh migration

.PHONY: sim fault check-all check-host check-kernel check-aarch64 check-foreign \
	check-release $(ALL) demo-migration lint fuzz soak coverage cross-check
