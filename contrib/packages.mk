# SPDX-License-Identifier: MIT
# Packages and images of what the Makefile builds, which includes this.

## Packages
## image: a container image of the static helper, build/image.tar
image: $(BUILD)/image.tar

$(BUILD)/image.tar: $(BUILD)/static/qemu-pr-helper contrib/image.sh
	contrib/image.sh $@ $(VERSION) $<

## dist: what is committed, as a tar file that needs no git
DIST = prhelper-$(VERSION)
dist:
	$(call needs,git,git)
	@[ -e .git ] || { echo "make dist packs what is committed: it needs a" \
		"git repository, and this is none" >&2; exit 1; }
	@mkdir -p build
	git -c safe.directory='$(CURDIR)' -c tar.umask=0022 archive \
		--prefix=$(DIST)/ -o build/$(DIST).tar HEAD
	gzip -9nf build/$(DIST).tar

## deb: a Debian package instead of QEMU's, in build/deb
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

## release: all that is published, in build/release; KEY=FILE signs
# Also MACHINES='x86_64 aarch64', SUITES='bookworm trixie sid' (root), ARCHIVE.
release:
	@contrib/release.sh $(VERSION)

.PHONY: image dist deb release
