# Every target does its own set-up: a virtual environment in .venv, torch first, then the package with its extras.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PY := .venv/bin/python
STAMP := .venv/.installed

# Modules are compiled when first imported, which is half the set-up of compiling all of them, and needs the result to be kept.
unexport PYTHONDONTWRITEBYTECODE
# pyright comes with all it needs; this stops it from asking the network whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# An environment that was half made, whose interpreter is gone, or that was made for another directory is made anew.
$(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && $(PY) -c 'import pip' 2>/dev/null || rm -f $(STAMP))

.PHONY: setup test lint demo bench gpu gallery docs clean

test: lint
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

demo: $(STAMP)
	$(PY) -m fenchel compare --out demo
	@echo "The report is $(CURDIR)/demo/report.html"

bench: $(STAMP)
	$(PY) -m fenchel bench

# Checks the Triton kernels on this machine's GPU and times the heads there; tables in gpu/. Elsewhere: PYTHONPATH=src python benchmarks/gpu.py
gpu: $(STAMP)
	$(PY) benchmarks/gpu.py

# Runs the experiment of every paper again; docs/gallery.md, its figures and the numbers behind them are committed.
gallery: $(STAMP)
	$(PY) docs/build_gallery.py --all

# Writes docs/img and docs/api from the library itself; both are committed, and the tests check that they are fresh.
docs: $(STAMP)
	$(PY) docs/plots.py
	$(PY) docs/build_api.py
	$(PY) docs/build_transforms.py
	$(PY) docs/build_gallery.py
	$(PY) docs/build_choosing.py

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Fenchel needs Python 3.11 or newer, got " + sys.version.split()[0] + ": pass one, as in make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv: some minutes the first time"
	@[ -f $(STAMP) ] || $(PYTHON) -m venv --clear .venv
	@rm -f $(STAMP)
	$(PY) -m pip install -qq --no-compile -c constraints.txt '$(TORCH)'
	$(PY) -m pip install -qq --no-compile -c constraints.txt -e '.[cli,hf,sklearn,trl,lightning,triton,dev]'
	@echo "$(CURDIR)" > $(STAMP)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests docs benchmarks -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
