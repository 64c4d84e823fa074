# make walkthrough   run every notebook in order and end with the stage table
# make test          the tests, and the notebooks against their stored outputs
# make browser-test  in headless Chromium: the power explorer in JupyterLab, and traces in Perfetto; leaves screenshots in
#                    build/browser
# make lab           JupyterLab, on the first notebook
# make notebooks     run the notebooks and their solutions again, and store the outputs of both
# make lint          ruff
# make gpu           on a machine with an NVIDIA GPU: versions, verification, tests and all measurements in six minutes,
#                    into gpu/ or OUT=DIR. It installs nothing: it runs in .venv where there is one, else in PYTHON
# Each of the others makes .venv and installs into it first, where that has not been done. Options of that first call:
#   PYTHON=python3.12   another Python, 3.11 or newer
#   CUDA=cu12           for an NVIDIA driver older than CUDA 13; `luce-edu doctor` says which one yours needs. A GPU
#                       newer than Hopper, such as an RTX 50, needs a driver of CUDA 13 (580 or newer) and not this
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   PyTorch from another index; this one saves gigabytes
#                       where there is no GPU
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed# holds the CUDA choice, so that a later plain `make` keeps it
PYTHON ?= python3
CUDA ?= $(shell cat $(INSTALLED) 2>/dev/null || echo cu13)
PINS := cat
ifeq ($(CUDA),cu12)
PINS := sed '/^. CUDA 13/,$$d'
TORCH_INDEX ?= https://download.pytorch.org/whl/cu126
endif

.PHONY: walkthrough test browser-test lab notebooks lint gpu install
.DEFAULT_GOAL := walkthrough

walkthrough: $(INSTALLED)
	@$(BIN)/luce-edu walkthrough

test: $(INSTALLED)
	$(BIN)/python -m pytest tests notebooks --numprocesses auto --dist loadfile --nbval \
		--nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600

browser-test: $(INSTALLED)
	@for chromium in chromium chromium-browser google-chrome; do command -v $$chromium > /dev/null && exit 0; done; \
		echo "make: no Chromium found; install it: sudo apt install chromium" >&2; exit 1
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser -s

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks/00_*.ipynb

notebooks: $(INSTALLED)
	@$(BIN)/luce-edu walkthrough --in-place

lint: $(INSTALLED)
	$(BIN)/ruff check .

gpu:
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m luce_edu gpu $(if $(OUT),--out '$(OUT)')

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@case "$(CUDA)" in cu12|cu13) ;; *) echo "make: expected CUDA=cu13 or CUDA=cu12, got '$(CUDA)'" >&2; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: '$(PYTHON)' is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: Python's venv module is missing; install it: sudo apt install python3-venv" >&2; exit 1; }
	@for cxx in $$CXX g++ clang++ c++; do \
		echo 'int main() {}' | $$cxx -std=c++20 -x c++ -fsyntax-only - 2>/dev/null && exit 0; done; \
		echo "make: no C++20 compiler found; install one: sudo apt install g++" >&2; exit 1
	$(PYTHON) -m venv $(VENV)
	@$(PINS) constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) \
		-e '.[$(CUDA),dev]'
	@echo "building the virtual GPU, about half a minute ..."
	@$(BIN)/python -c 'from luce_edu.machine.core import core; core()'
	@echo $(CUDA) > $@
