# SPDX-License-Identifier: MIT
# What `make bench` compares; the Makefile includes this.

BENCHED = ioctl fstat fstat64
BENCH = build/bench

## Measure
## bench: the helper, the stock one and a floor (root)
bench: $(HELPER) static $(BENCH)/bench $(BENCH)/hang.so \
		$(BENCH)/qemu-pr-helper $(BENCH)/qemu-pr-helper-static
	tests/lib/fetch.sh python3 -- sh -c 'exec "$$PYTHON" tests/bench/bench.py'

$(BENCH)/bench: tests/bench/bench.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,LINK)$(CC) $(COMPILE) -o $@ $<

$(BENCH)/hang.so: tests/bench/bench_device.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,LINK)$(CC) $(COMPILE) -D__wrap_ioctl=ioctl -shared -fPIC -o $@ $<

$(BENCH)/qemu-pr-helper: $(OBJECTS) $(BUILD)/tests/bench/bench_device.o
	@mkdir -p $(@D)
	$(call run,LINK)$(LINK) $(BENCHED:%=-Wl,--wrap=%) -o $@ $^

$(BENCH)/qemu-pr-helper-static: $(SOURCES) tests/bench/bench_device.c $(COMMON)
	@mkdir -p $(@D)
	$(call run,STATIC)$(STATIC) -fno-lto $(BENCHED:%=-Wl,--wrap=%) -o $@ \
		$(filter %.c,$^)

.PHONY: bench
