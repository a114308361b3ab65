# Everything a developer, an operator trying the agent out, or CI does. Runs as root, without sudo, on
# Debian 12 and 13; what is missing is installed from apt and pip.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# The distribution's Python, since that is the one python3-bpfcc is made for.
SYSTEM_PYTHON ?= /usr/bin/python3
VENV := .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest

APT_RUN := python3-bpfcc python3-venv libbpf1
APT_CHECK := clang gcc gcc-multilib libc6-dev
APT_TEST := $(APT_CHECK) bpftool busybox-static containerd dpkg-dev gdb htop iproute2 kmod lsof procps psmisc \
	mmdebstrap qemu-system-x86 runc strace
C_FILES = $(wildcard bpf_programs/*.[ch] tests/*/*.[ch] bench/*.[ch] demo/*.[ch])

# dpkg is asked first: apt is slow, needs its lists, and has nothing to do the second time.
define apt-install
missing=$$(comm -13 <(dpkg-query --show --showformat='$${db:Status-Status} $${Package}\n' $(1) 2>/dev/null \
	| sed -n 's/^installed //p' | sort -u) <(printf '%s\n' $(1) | sort -u)); \
if [ -n "$$missing" ]; then \
	apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing; \
fi
endef

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; \
	do printf '  %-12s %s\n' "$$target" "$$text"; done

##### Installing

# The environment sees PyPI's packages and, by one link, the distribution's bcc: no other package of the
# distribution can then stand in for a newer one that is needed, or load a start-up hook of its own.
$(VENV)/run.stamp: pyproject.toml
	@$(call apt-install,$(APT_RUN))
	[ -x $(PYTHON) ] || $(SYSTEM_PYTHON) -m venv $(VENV)
	ln -sfn "$$($(SYSTEM_PYTHON) -c 'import bcc, os; print(os.path.dirname(bcc.__file__))')" \
		"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bcc"
	$(PYTHON) -m pip install --quiet --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/run.stamp
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	$(PYTHON) -m pip check
	touch $@

.PHONY: setup
setup: setup-build ## Install all that running and testing need
	@$(call apt-install,$(APT_TEST))

.PHONY: setup-run
setup-run: $(VENV)/run.stamp
	@$(call apt-install,$(APT_RUN))

.PHONY: setup-check
setup-check: setup-run $(VENV)/dev.stamp
	@$(call apt-install,$(APT_CHECK))

# kubectl is fetched, not installed; the second time there is nothing to do.
.PHONY: setup-build
setup-build: setup-check
	@$(PYTHON) -m tests.kubectl

##### Running

.PHONY: run
run: setup-run ## Run the agent in the foreground, without Kubernetes; more flags in ARGS=
	exec $(VENV)/bin/cloudtaser-ebpf run --standalone $(ARGS)

.PHONY: demo
demo: setup ## Attack a sample wrapper with the agent off, then on, and show what leaked
	$(PYTHON) demo/run.py $(ARGS)

.PHONY: bench
bench: setup ## Measure start-up, memory and the cost of a system call
	$(PYTHON) bench/run.py $(ARGS)

##### Testing

.PHONY: test
test: setup lint types test-unit test-build test-kernel test-vm ## Run every test, virtual machines included

.PHONY: check
check: lint types test-unit test-build ## Run what needs no kernel: lint, types, unit, build (under a minute)

.PHONY: fmt
fmt: setup-check ## Format Python and C, and mend what ruff can mend
	$(PYTHON) -m ruff check --quiet --fix-only .
	$(PYTHON) -m ruff format .
	$(if $(C_FILES),$(VENV)/bin/clang-format -i $(C_FILES))

.PHONY: lint
lint: setup-check ## Check style, formatting and who may import whom
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(if $(C_FILES),$(VENV)/bin/clang-format --dry-run --Werror $(C_FILES))
	$(VENV)/bin/lint-imports --cache-dir .cache/import-linter

.PHONY: types
types: setup-check ## Check types
	$(PYTHON) -m mypy

.PHONY: test-unit
test-unit: setup-check ## Run the tests that run anywhere
	$(PYTEST) tests/unit $(ARGS)

.PHONY: test-build
test-build: setup-build ## Run the tests that need a C compiler or kubectl
	$(PYTEST) tests/build $(ARGS)

.PHONY: test-kernel
test-kernel: setup ## Run the tests of real attacks on this machine's kernel; none may be skipped
	CLOUDTASER_KERNEL_TESTS=require $(PYTEST) tests/kernel $(ARGS)

.PHONY: test-vm
test-vm: setup kernels ## Run the tests of real attacks on the kernels of the matrix
	rm -f .cache/vm/*/matrix-*.json
	CLOUDTASER_KERNEL_TESTS=require $(PYTEST) tests/vm $(ARGS)
	$(PYTHON) -m tests.matrix check .cache/vm/*/matrix-*.json

.PHONY: matrix
matrix: ## Write what the last test-vm saw to docs/enforcement-matrix.json and .md
	$(PYTHON) -m tests.matrix update --replace .cache/vm/*/matrix-*.json

.PHONY: kernels
kernels: setup ## Fetch the kernels that test-vm boots
	$(PYTHON) -m tests.vm.kernels

.PHONY: clean
clean: ## Remove what make and the tools made
	rm -rf $(VENV) .cache build dist htmlcov *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
