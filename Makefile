# Everything here needs only Python 3.11 or later, pip and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
RUN ?= runs/demo
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
REQUIREMENTS := requirements/py$(VERSION).txt
STAMP := $(VENV)/.installed-$(VERSION)
PY := $(VENV)/bin/python

.PHONY: setup demo test test-all lint format clean

setup: $(STAMP)

$(STAMP): $(wildcard requirements/*.txt)
	@test -f $(REQUIREMENTS) || { echo "Python $(VERSION) is not supported: use one of" \
	  "$(patsubst requirements/py%.txt,%,$(wildcard requirements/py*.txt)), for example 'make PYTHON=python3.12 $(MAKECMDGOALS)'."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(REQUIREMENTS)
	@touch $@

demo: setup      ## train Memory Defense on Fashion-MNIST, attack it, print what holds (13 minutes)
	$(PY) -m eval.demo --run $(RUN)

# Whole files to a worker, because its tests share what was expensive to make; in their order, as the
# files with the fewest tests, which are last else, are the longest.
TEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup      ## every test, warnings as errors
	$(TEST)

test-all: setup  ## those too that show in another place what a test above shows
	$(TEST) -m ""

lint: setup      ## style, format, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
