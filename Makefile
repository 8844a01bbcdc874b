# SPDX-License-Identifier: GPL-2.0

KDIR ?= /lib/modules/$(shell uname -r)/build

# The distribution's rustfmt, if there is one: rustup's may be of another version.
RUSTFMT ?= $(or $(wildcard /usr/bin/rustfmt),rustfmt)

# Kbuild with what this kernel's build needs to be told, if it can build at all.
kbuild = +@vars=$$(scripts/preflight $(2) '$(KDIR)') && \
	$(MAKE) -C '$(KDIR)' M='$(CURDIR)' $$vars $(1)

modules:
	$(call kbuild,modules)

modules_install:
	$(call kbuild,modules_install,--kernel-only)

clean:
	@find '$(or $(MO),.)' -name .git -prune -o \( \
		-name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' -o \
		-name '*.bc' -o -name '*.rmeta' -o -name '.*.cmd' -o -name '.*.d' -o \
		-name '*_generated.rs' -path '*/rust/bindings/*' -o -name 'modules.order' -o \
		-name 'Module.symvers' -o -name 'rust-project.json' \) -exec rm -f {} +

rust-analyzer:
	$(call kbuild,rust-analyzer)
	@scripts/rust_project.py '$(or $(MO),.)'

fmt fmtcheck:
	@find rust tools -name '*.rs' ! -name '*_generated.rs' -exec \
		$(RUSTFMT) --edition 2021 $(if $(filter %check,$@),--check) {} +

thinctl:
	@scripts/thinctl

thinctl_install:
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' scripts/thinctl install

setup:
	@scripts/setup

clippy:
	@scripts/clippy

demo:
	@scripts/demo

test:
	@TURN='$(TURN)' FRESH='$(FRESH)' scripts/test $(SUITES)

test-one:
	@scripts/test-one '$(T)'

bench:
	@ROWS='$(ROWS)' SIZES='$(SIZES)' PROFILE='$(PROFILE)' IMPL='$(IMPL)' scripts/bench

soak:
	@PARTS='$(PARTS)' SCALE='$(SCALE)' SEED='$(SEED)' scripts/soak

help:
	@echo 'Module:'
	@echo '  modules          - Build dm-thin-pool.ko (the default target)'
	@echo '  modules_install  - Install it under updates/, which depmod prefers to the'
	@echo '                     module that comes with the kernel'
	@echo '  clean            - Remove what the build made'
	@echo ''
	@echo 'Programs:'
	@echo '  thinctl          - Build the program thinctl, and print where it is'
	@echo '  thinctl_install  - Install it, with manual pages and completions, below'
	@echo '                     PREFIX=/usr/local'
	@echo ''
	@echo '  KDIR=<folder>    - The kernel to build for: configured and built, 7.3, with'
	@echo '                     CONFIG_RUST=y; without KDIR it is the running one'
	@echo '  MO=<folder>      - Put the output there instead of here'
	@echo '  INSTALL_MOD_PATH=<folder>'
	@echo '                   - Install below this folder instead of /'
	@echo '  KUNIT=y          - With the unit tests, which run at insmod'
	@echo '  CONFIG_DM_THIN_SPACE_MAP_CHECKER=y'
	@echo '                   - Check every change of a space map (see Kconfig)'
	@echo ''
	@echo 'Test kernels (as root on Debian 12 or 13; the rest installs itself):'
	@echo '  demo             - Show pools, volumes and snapshots at work in a VM'
	@echo '  test             - Run all tests; SUITES="..." runs only some of:'
	@echo '                     scripts lint cargo fuzz kunit functional thinctl leaks'
	@echo '                     cache power hostile smoke lvm2 graft;'
	@echo '                     FRESH=1 also runs what has passed and did not change;'
	@echo '                     TURN=all plays also what takes turns from commit to commit'
	@echo '  test-one         - Run one of the functional tests on the module as it is now:'
	@echo '                     T=test_commit.py, or T=test_commit.py::test_commit_on_flush'
	@echo '  bench            - Measure this module beside the C one; ROWS="read-4k-*"'
	@echo '                     and SIZES="1Mi" measure only a part;'
	@echo '                     PROFILE=<row> shows what its instructions are, of'
	@echo '                     IMPL=c or rust'
	@echo '  soak             - Hours of crashes, faults, fuzzing and stress, with a'
	@echo '                     report; PARTS="crash fuzz" runs only some of it,'
	@echo '                     SCALE=0.1 less of each, SEED=<n> the same once more'
	@echo '  setup            - Only get the tools and build the test kernels'
	@echo '  clippy           - Check all Rust code with clippy; warnings are errors'
	@echo ''
	@echo 'Sources:'
	@echo '  fmt              - Format all Rust code'
	@echo '  fmtcheck         - Say which Rust code is not formatted'
	@echo '  rust-analyzer    - Write rust-project.json for rust-analyzer'
	@echo '  help             - Show this'

.PHONY: modules modules_install clean rust-analyzer fmt fmtcheck setup clippy demo test test-one bench soak help thinctl thinctl_install
