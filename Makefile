# Two commands on a fresh machine: `make sample` draws images, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sample test clean
.NOTPARALLEL:

sample: .venv/installed
	$(BIN)/python scripts/sample.py --method sjd --out out/sample.png

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -n auto --dist loadfile

.venv/made:
	$(PYTHON) -m venv --clear .venv
	touch $@

.venv/installed: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv
