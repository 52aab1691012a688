# Two commands on a fresh machine: `make sample` draws images, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sample test lint deptry clean
.NOTPARALLEL:

sample: .venv/installed
	$(BIN)/vargen sample --num-images 6 --batch-size 1 --compare --out out/sample.png --overwrite

test: .venv/installed-dev
	$(MAKE) .venv/quant .venv/ray & beside=$$!; $(MAKE) lint; status=$$?; wait $$beside && exit $$status
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
	PYTHONPATH=.venv/ray $(BIN)/python -m pytest tests/test_server_ray.py tests/test_ray_data.py & ray=$$!; \
	    PYTHONPATH=.venv/quant $(BIN)/python -m pytest tests/test_quantize.py; status=$$?; \
	    wait $$ray && exit $$status

lint: .venv/installed-dev deptry
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_imports.py
	$(BIN)/basedpyright

# What is imported is declared and the other way round; what the package itself imports is no tool of development.
deptry: .venv/installed-dev
	$(BIN)/deptry vargen tests scripts benchmarks
	$(BIN)/deptry vargen --optional-dependencies-dev-groups dev --ignore DEP002

.venv/made:
	$(PYTHON) -m venv --clear .venv
	touch $@

.venv/installed: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

# torchao beside the environment and not in it: once it is installed, diffusers imports it for everybody.
.venv/quant: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ 'torchao>=0.18'
	touch $@

# Ray beside it too: it is large. Where there is none for this machine, its tests are skipped.
.venv/ray: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --quiet --upgrade --target $@ 'ray[serve,data]>=2.60' || \
	    { echo "Ray cannot be installed here: its tests are skipped" >&2; mkdir -p $@; }
	touch $@

clean:
	rm -rf .venv
