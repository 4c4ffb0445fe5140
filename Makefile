# SPDX-License-Identifier: MIT
# Builds, tests and installs the helper. Needs a C99 compiler, libc and the
# kernel's headers; `make static` also musl. What the tests need beyond that
# they fetch into build/. Nothing here may write outside of build/, but for
# ./qemu-pr-helper and what `make install` is told to.
#
# To be given on the command line as usual: CC, CPPFLAGS, CFLAGS, LDFLAGS,
# DESTDIR, PREFIX (or prefix), BINDIR, MANDIR, LOCALSTATEDIR.

VERSION = 0.1.0

PREFIX = $(or $(prefix),/usr/local)
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
LOCALSTATEDIR = /var

CFLAGS = -O2
STATIC_CC = musl-gcc
STRIP = strip

STANDARD = -std=c99 -pedantic -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64
WARNINGS = -Wall -Wextra -Wshadow -Wvla -Wconversion
DEFINES = -DVERSION='"$(VERSION)"' -DLOCALSTATEDIR='"$(LOCALSTATEDIR)"'
COMPILE = $(STANDARD) $(WARNINGS) $(DEFINES) $(CPPFLAGS) $(CFLAGS)

SOURCES = prhelper.c session.c client.c protocol.c sg_io.c options.c \
	listen.c daemon.c privdrop.c log.c
HEADERS = prhelper.h protocol.h

all: qemu-pr-helper

OBJECTS = $(SOURCES:%.c=build/%.o)

qemu-pr-helper: $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(OBJECTS)

build/%.o: %.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(COMPILE) -c -o $@ $<

# One call of the compiler sees all of the program, and leaves out what
# nothing calls. Debian's musl-gcc does not find the kernel's headers.
STATIC_FLAGS = -static -Os -flto -ffunction-sections -fdata-sections \
	-Wl,--gc-sections
KERNEL_HEADERS = -idirafter /usr/include \
	-idirafter /usr/include/$(shell $(STATIC_CC) -print-multiarch)

static: build/static/qemu-pr-helper

build/static/qemu-pr-helper: $(SOURCES) $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(STATIC_CC) $(COMPILE) $(STATIC_FLAGS) $(KERNEL_HEADERS) $(LDFLAGS) \
		-o $@ $(SOURCES)
	$(STRIP) $@

# The helper with a simulated SCSI target in place of the devices, so that
# all of it runs as an ordinary user.
WRAPPED = ioctl fstat fstat64 prctl
SIM_FLAGS = $(WRAPPED:%=-Wl,--wrap=%)

sim: build/sim/qemu-pr-helper

build/sim/qemu-pr-helper: $(OBJECTS) build/tests/sim_target.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(SIM_FLAGS) $(LDFLAGS) -o $@ $^

clean:
	rm -rf build qemu-pr-helper

.PHONY: all static sim clean
