# make demo | make test | make test-slow | make bench | make docs | make clean
# needs: make, Python 3.10 to 3.14 with venv.  CUDA=12 or 13 (default: the driver's), PYTHON=python3.x
PYTHON ?= python3
VENV   ?= .venv
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n "s/.*CUDA Version: *\([0-9]*\).*/\1/p")
CUDA   ?= $(or $(filter 12,$(DRIVER)),13)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-cuda$(CUDA)
UV     := $(shell command -v uv 2>/dev/null)

# Else every process that a test or the demo starts compiles 3,000 modules anew, which is half of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint bench docs clean
demo: $(STAMP)
	$(BIN)/python -m objcrop demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m objcrop bench plan
	$(BIN)/python -m objcrop bench loader

docs: $(VENV)/.installed-docs
	$(BIN)/python -m objcrop.option_page docs/options.md
	$(BIN)/python -m objcrop.command_page docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.installed-docs: $(STAMP)
	VIRTUAL_ENV=$(abspath $(VENV)) $(or $(UV),$(BIN)/uv) pip install -e '.[docs]' || $(BIN)/python -m pip install -e '.[docs]'
	@touch $@

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3,10) <= sys.version_info[:2] < (3,15))' || { echo "Python 3.10 to 3.14 is needed: make PYTHON=python3.12"; exit 1; }
	@test -L objcrop/ssl || { echo "objcrop/ssl is not a link: clone with git on Linux or WSL (core.symlinks=true)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(UV),,$(BIN)/python -m pip install -q uv)
	VIRTUAL_ENV=$(abspath $(VENV)) $(or $(UV),$(BIN)/uv) pip install -e '.[cuda$(CUDA),all,test]' || $(BIN)/python -m pip install -e '.[cuda$(CUDA),all,test]'
	@rm -f $(VENV)/.installed-*; touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
