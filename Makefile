# `make` alone lists the targets. Everything lives in .venv; nothing else is touched.

SHELL := /bin/bash
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
PIP_INSTALL := $(PIP) install -qq --no-build-isolation --no-deps
# Where to look for CPython 3.10. A name that exists may still not run (pyenv's shims).
PYTHONS = $(or $(PYTHON),python3.10 python3 python \
  $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10.*/bin/python \
  $$(uv python find --system 3.10 2>/dev/null))
NO_PYTHON = r2d2_acme needs CPython 3.10 and none of these is one: \
  $(or $(PYTHON),python3.10 python3 python pyenv uv); \
  cure: uv python install 3.10 (pip install uv gets uv), \
  or make PYTHON=/path/to/python3.10
NO_LINUX = r2d2_acme needs Linux on x86-64 with glibc; \
  cure: docker run --platform linux/amd64 \
  -it -v "$$PWD":/r2d2 -w /r2d2 python:3.10 bash
# All tests run in three processes, as many of them wait for programs; a choice of them
# in one, which starts sooner.
TEST_ARGS = $(or $(ARGS),--numprocesses=3 --dist=loadfile --no-loadscope-reorder)
EXTRA_LOCKS = dev:test,bench gpu:gpu envs:envs ray:ray wandb:wandb mlflow:mlflow
# Prints the packages of pip's report on what it would install.
REPORTED = import json, sys; \
  packages = [package["metadata"] for package in json.load(sys.stdin)["install"]]; \
  packages.sort(key=lambda package: package["name"].lower()); \
  print(*("{name}=={version}".format(**package) for package in packages \
    if package["name"] != "r2d2-acme"), sep="\n")
LOCK_HEADER = \# All packages, for CPython 3.10 on Linux x86-64. `make lock` writes this.

.PHONY: help install test train bench check format doctor lock clean FORCE
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z]*\):.* ## /make \1\t/p' Makefile

install: .venv/.installed $(EXTRAS:%=.venv/.installed-%) ## make .venv with everything the agent needs (EXTRAS=gpu: CUDA, too)

test: .venv/.installed-dev ## run the tests (ARGS="-k losses")
	@$(PY) -m pytest $(TEST_ARGS)

train: install ## train on this machine (ARGS="--env=ALE/Pong-v5 --num_actors=4")
	@exec $(PY) launch/atari_distributed.py --lp_launch_type=local_mp $(ARGS)

bench: .venv/.installed-dev ## measure ours, Acme's and the machine's limit (ARGS=actor)
	@exec $(PY) launch/benchmark.py --json results/benchmark.json $(ARGS)

check: .venv/.installed-dev ## format, lint, types and tests, as CI does
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m pytest --durations=40 $(TEST_ARGS)

format: .venv/.installed-dev ## format the code and sort its imports
	@$(PY) -m ruff check -q --fix --select I
	@$(PY) -m ruff format

doctor: install ## check the installation by using every part of it
	@$(PY) -m r2d2_acme.system.doctor

lock: .venv/.home ## resolve requirements*.txt again from setup.py
	@set -e; new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; $(PY) -m venv $$new; \
	pip="$$new/bin/python -m pip --disable-pip-version-check"; \
	freeze() { $$pip freeze --all --exclude pip --exclude r2d2-acme; }; \
	$$pip install -qq wheel; \
	echo 'Resolving requirements.txt ...'; $$pip install -qq .; \
	(echo '$(LOCK_HEADER)'; freeze) > requirements.txt; \
	for file in $(EXTRA_LOCKS); do \
	  name=requirements-$${file%:*}.txt; echo "Resolving $$name ..."; \
	  $$pip install -qq --dry-run --report $$new/report -c requirements.txt \
	    ".[$${file#*:}]"; \
	  (echo '$(LOCK_HEADER)'; echo '-r requirements.txt'; \
	    $(PY) -c '$(REPORTED)' < $$new/report) > $$name; \
	done

clean: ## remove .venv and caches; leaves runs/ alone
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# The lock is complete, so pip need not resolve; dm-acme comes as source only and is
# built with the locked setuptools rather than with the newest.
.venv/.installed: .venv/.home requirements.txt setup.py pyproject.toml
	@echo 'Installing requirements.txt (about 90 s the first time) ...'
	@$(PIP_INSTALL) $$(grep -E '^(setuptools|wheel)==' requirements.txt)
	@$(PIP_INSTALL) -r requirements.txt
	@echo 'Installing r2d2_acme ...'
	@$(PIP_INSTALL) -e .
	@$(PIP) check -q || $(PIP) check  # quiet unless it has something to say
	@$(PY) -m r2d2_acme.system.doctor --fix
	@touch $@ && echo 'Installed. Next: make doctor, make train, make test.'

.venv/.installed-%: .venv/.installed requirements-%.txt
	@echo 'Installing requirements-$*.txt (about 60 s the first time) ...'
	@$(PIP_INSTALL) -r requirements-$*.txt
	@$(PIP) check -q || $(PIP) check  # quiet unless it has something to say
	@touch $@

# Names the folder that .venv was made for: one that is half made, was moved along with
# its checkout, or has lost its Python is made again.
.venv/.home: FORCE
	@if [ "$$(cat $@ 2>/dev/null)" = "$$(pwd -P)" ] && $(PY) -c '' 2>/dev/null; \
	then exit; fi; \
	if [ "$$(uname -sm)" != 'Linux x86_64' ] || ! getconf GNU_LIBC_VERSION &>/dev/null; \
	then echo '$(NO_LINUX)' >&2; exit 1; fi; \
	for python in $(PYTHONS); do \
	  if why=$$("$$python" -m r2d2_acme.system.doctor --interpreter 2>/dev/null); then \
	    echo "Making .venv with $$("$$python" -V) ($$python) ..."; \
	    "$$python" -m venv --clear .venv && pwd -P > $@; exit; \
	  fi; \
	  reason=$${reason:-$$why}; \
	done; \
	echo "$${reason:-$(NO_PYTHON)}" >&2; exit 1
