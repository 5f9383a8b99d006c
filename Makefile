# The front door: make setup | demo | check | test | bench | torture | trixie | rehearse | scale | fuzz | unit-test | clean
# On a hypervisor: make install | uninstall
# Made for a bare Debian 12 (git, make, python3), as root; elsewhere install what PACKAGES names yourself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# To make the virtual environment and build libvirt-python.
PACKAGES := python3-venv python3-dev gcc libc6-dev pkg-config libvirt-dev
# What the tests and the demo drive.
PACKAGES += libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients
PACKAGES += qemu-system-x86 qemu-utils libnbd-bin
# Guests with UEFI and a TPM: 11 MB to fetch.
PACKAGES += ovmf swtpm swtpm-tools
# To make the demo's guest.
PACKAGES += debootstrap e2fsprogs
# To look into guests' file systems with, and to make some.
PACKAGES += libguestfs0 libguestfs-xfs xfsprogs ntfs-3g dosfstools mtools lvm2
# What the commands of docs/first-day.md and docs/disaster-day.md use.
PACKAGES += curl openssl openssh-client
# To look at the page with: 64 MB to fetch, 225 MB on disk.
PACKAGES += chromium-headless-shell
# To check metrics, alert rules and what becomes of them; their services are not wanted.
# An SSH server to reach a libvirt by, at a port of the tests' own.
QUIET := prometheus prometheus-alertmanager openssh-server
PACKAGES += $(QUIET)

INSTALLED = $(shell dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | sed -n 's/^installed //p')
MISSING = $(filter-out $(INSTALLED),$(PACKAGES))
APT = DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends
INSTALL = $(APT) $(filter-out $(QUIET),$(MISSING)) && $(if $(filter $(QUIET),$(MISSING)),$(INSTALL_QUIET),:)
# A policy of their own keeps services from being started as they are installed, and they are enabled for no later start.
POLICY := /usr/sbin/policy-rc.d
WANTS := /etc/systemd/system/multi-user.target.wants
INSTALL_QUIET = ( test -e $(POLICY) || { trap 'rm -f $(POLICY)' EXIT; \
  printf '\#!/bin/sh\nexit 101\n' >$(POLICY); chmod 755 $(POLICY); }; \
  $(APT) $(filter $(QUIET),$(MISSING)) && rm -f $(patsubst %,$(WANTS)/%.service,$(patsubst openssh-server,ssh,$(filter $(QUIET),$(MISSING)))) )

.PHONY: setup packages demo check test bench torture trixie rehearse scale fuzz soak unit-test install uninstall clean
.DELETE_ON_ERROR:

setup: packages $(VENV)/ready
	@:

# The lists of packages are fetched only where they are too old, or lack, to install from.
packages:
	@missing='$(MISSING)'; test -z "$$missing" || { \
	  command -v apt-get >/dev/null || { echo "no apt-get here: install what stands for $$missing"; exit 0; }; \
	  test "$$(id -u)" = 0 || { echo "not root, so install it yourself: apt-get install $$missing"; exit 0; }; \
	  $(INSTALL) || { apt-get update -q && $(INSTALL); }; }

# setuptools warns of root folders named like parts of the package: conftest.py keeps them off sys.path.
$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m tests.lab.demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/project

# Three at a time on two cores, a file each: tests with a real guest or bucket mostly wait. Those come first, as they
# take longest.
WORKERS ?= 3
test: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# How long lists and plans of a large repository take; the machine must have nothing else to do.
scale: setup
	$(BIN)/python -m pytest -m torture -s tests/torture/test_scale.py

# Parsers with inputs made from a seed, for so long; a finding says how to repeat it.
MINUTES ?= 60
SEED ?= $(shell date +%s)
fuzz: setup
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED)

# The service at work for MINUTES: its memory, threads and descriptors.
soak: setup
	MINUTES=$(MINUTES) $(BIN)/python -m pytest -m torture -s tests/torture/test_soak.py

torture: setup
	$(BIN)/python -m pytest -m torture --timeout 0

# What depends on libvirt and QEMU, on Debian 13's in a folder (400 MB, made once), and between both.
trixie: setup
	VMBACKUP_LAB_LIBVIRT=trixie $(BIN)/python -m pytest -m 'versions and not torture'
	$(BIN)/python -m pytest -m 'versions and torture' --timeout 0

# The pages of the first day and of disaster day, each command of them, with a real guest; virt-install is for these alone.
rehearse: PACKAGES += virtinst
rehearse: setup
	$(BIN)/python -m pytest -m torture --timeout 0 --durations 0 tests/torture/test_pages.py

# The service under a real systemd, in a guest that is a hypervisor itself.
unit-test: setup
	$(BIN)/python -m pytest -m torture --timeout 0 tests/torture/test_unit.py

# Into this machine, or below DESTDIR. PYTHON: the one that runs it; the system's own has the libvirt module.
PREFIX ?= /usr
install uninstall:
	@systemd/install.sh $@ '$(DESTDIR)' '$(PREFIX)' '$(PYTHON)'

bench: setup
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
