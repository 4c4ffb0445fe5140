# SPDX-License-Identifier: MIT
# Builds and installs both programs; `make help` lists all targets. Needs a C99
# compiler, libc and the kernel's headers; `make static` also musl. Nothing may
# be written but build/, both programs, and what `make install` is told to.
#
# To be given on the command line as usual: CC, CPPFLAGS, CFLAGS, LDFLAGS,
# DESTDIR, PREFIX (or prefix), BINDIR, MANDIR, UNITDIR, DOCDIR, COMPLETIONDIR,
# LOCALSTATEDIR. (There is no SBINDIR: libvirt, SELinux and AppArmor want bin.)

VERSION = 1.0.0

PREFIX = $(or $(prefix),/usr/local)
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/prhelper
UNITDIR = $(PREFIX)/lib/systemd/system
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
LOCALSTATEDIR = /var

CFLAGS = -O2 -fno-asynchronous-unwind-tables
STATIC_CC = musl-gcc
STRIP = strip

STANDARD = -std=c99 -pedantic -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64
WARNINGS = -Wall -Wextra -Wshadow -Wvla -Wconversion
DEFINES = -DVERSION='"$(VERSION)"' -DLOCALSTATEDIR='"$(LOCALSTATEDIR)"'
# The same bytes wherever they are built.
PLACELESS = '-fdebug-prefix-map=$(CURDIR)=.'
COMPILE = $(STANDARD) $(WARNINGS) $(PLACELESS) $(DEFINES) $(CPPFLAGS) $(CFLAGS)

SOURCES = $(sort $(wildcard *.c multipath/*.c))
CLIENT_SOURCES = $(sort $(wildcard admin/*.c)) protocol.c sg_io.c \
	sockets.c sysfs.c multipath/multipathd.c
HEADERS = $(wildcard *.h multipath/*.h admin/*.h)

# Another build of all of it beside the usual one: see tests/tests.mk.
BUILD = build
HELPER = qemu-pr-helper
CLIENT = qemu-pr-client

## Build and install
## all: ./qemu-pr-helper and ./qemu-pr-client; the default
all: $(HELPER) $(CLIENT)

# A command is shown in short, unless V=1, and not at all by make -s.
run = $(if $(filter-out 0,$(V)),,@$(if $(findstring \
	s,$(firstword -$(MAKEFLAGS))),,printf '  %-7s %s\n' $(1) $@;))

OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o)
CLIENT_OBJECTS = $(CLIENT_SOURCES:%.c=$(BUILD)/%.o)

# What a session would have to look up, it has from main; and what it maps
# is copied for each.
LINK = $(CC) $(CFLAGS) $(PLACELESS) -Wl,-z,now,-z,noseparate-code $(LDFLAGS)

$(HELPER): $(OBJECTS)
	$(call run,LINK)$(LINK) -o $@ $^

$(CLIENT): $(CLIENT_OBJECTS)
	$(call run,LINK)$(CC) $(CFLAGS) $(PLACELESS) $(LDFLAGS) -o $@ $^

# Whatever every program depends on. What is made with other variables is made
# anew, but `make install` alone takes what is there, unless it is told them.
COMMON = $(HEADERS) Makefile $(BUILD)/variables
VARIABLES := $(CC) $(COMPILE) $(LDFLAGS) $(STATIC_CC) $(STRIP)
TOLD = $(filter command,$(foreach name,CC CPPFLAGS CFLAGS LDFLAGS \
	LOCALSTATEDIR,$(origin $(name))))
$(BUILD)/variables: $(if $(TOLD)$(filter-out install uninstall,$(or \
		$(MAKECMDGOALS),all)),ALWAYS)
	@mkdir -p $(@D)
	@set -- '$(subst ','\'',$(VARIABLES))'; \
		echo "$$*" | cmp -s - $@ || echo "$$*" >$@

$(BUILD)/%.o: %.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,CC)$(CC) $(COMPILE) -c -o $@ $<

# One call of the compiler sees all of the program, and leaves out what
# nothing calls. musl does not protect relocations of a static program: relro
# would only pad it. It has its place in memory from the linker anyhow, so no
# code has to find out where. Debian's musl-gcc does not find the kernel's
# headers.
STATIC_FLAGS = -static -fno-pie -no-pie -Os -flto -ffunction-sections \
	-fdata-sections -fno-asynchronous-unwind-tables -fno-jump-tables \
	-Wl,--gc-sections,-z,noseparate-code,-z,norelro
KERNEL_HEADERS = -idirafter /usr/include \
	-idirafter /usr/include/$(shell $(STATIC_CC) -print-multiarch 2>&-)
STATIC = $(STATIC_CC) $(COMPILE) $(STATIC_FLAGS) $(KERNEL_HEADERS) $(LDFLAGS)

# What a target takes that the others do without: it says so in a sentence.
needs = @command -v $(1) >/dev/null || { echo "make $@ needs $(1), from" \
	"Debian's package $(2): please install it" >&2; exit 1; }

## static: both with musl and without a library, in build/static
static: $(BUILD)/static/qemu-pr-helper $(BUILD)/static/qemu-pr-client

$(BUILD)/static/qemu-pr-helper: $(SOURCES)
$(BUILD)/static/qemu-pr-client: $(CLIENT_SOURCES)
$(BUILD)/static/qemu-pr-helper $(BUILD)/static/qemu-pr-client: $(COMMON)
	$(call needs,$(firstword $(STATIC_CC)),musl-tools)
	@mkdir -p $(@D)
	$(call run,STATIC)$(STATIC) -o $@ $(filter %.c,$^)
	$(call run,STRIP)$(STRIP) -R .comment $@

# What is installed, and where to. For the static programs: PROGRAMS='
# build/static/qemu-pr-helper build/static/qemu-pr-client'.
PROGRAMS = $(HELPER) $(CLIENT)
MANUALS = $(wildcard man/*.[18])
UNITS = $(wildcard contrib/systemd/*.service contrib/systemd/*.socket)
COMPLETIONS = $(wildcard contrib/bash-completion/*)
TEXTS = $(MANUALS) $(UNITS) $(COMPLETIONS) LICENSE
INSTALLED_PROGRAMS = $(addprefix $(BINDIR)/,$(notdir $(PROGRAMS)))
INSTALLED_TEXTS = $(foreach page,$(MANUALS),\
	$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))) \
	$(addprefix $(UNITDIR)/,$(notdir $(UNITS))) \
	$(addprefix $(COMPLETIONDIR)/,$(notdir $(COMPLETIONS))) $(DOCDIR)/LICENSE
# Manuals and units say where things really are.
PATHS = -e 's|/usr/bin/|$(BINDIR)/|g' -e 's|/var/run/|$(LOCALSTATEDIR)/run/|g'

## install, uninstall: below PREFIX (/usr/local) in DESTDIR
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

## clean, distclean: without and with what the tests have fetched
clean:
	rm -rf qemu-pr-helper qemu-pr-client $(filter-out build/debian build/apt \
		build/roots,$(wildcard build/*))
distclean:
	rm -rf qemu-pr-helper qemu-pr-client build

help:
	@echo 'make TARGET... [V=1, which shows whole commands]'
	@awk -F ': ' '/^## / { sub(/^## /, ""); if (NF == 1) print "\n" $$0 ":"; \
		else printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: all static install uninstall clean distclean help ALWAYS

# Who only builds does without these.
include $(wildcard contrib/packages.mk tests/tests.mk tests/bench/bench.mk)
