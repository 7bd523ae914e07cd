# `make help` lists what there is. Everything happens in .venv, which the first call makes; a file under
# .venv/.made stands for each step that is done, so that a second call starts with its work at once.
#
#   make test PYTHON=python3.12     another interpreter, in an environment of its own (.venv-3.12)
#   make test ARGS="-k lengths"     what pytest, or `fusecell train`, is given besides (-n 0: in one process, as -s needs)
#   make test WERROR=1              a core built with warnings as errors
#   make test FUSECELL_CUDA=on      with the CUDA backend: auto (where there are nvcc and a GPU), on, off

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two pips must not share an environment

PYTHON ?=
ARGS ?=
WERROR ?= 0
TORCH ?= torch==2.13.0
# A process for each core: two take 0.62 of the time of one. A file's tests stay together, so that what they share is made once.
WORKERS := -n logical --maxprocesses 8 --dist loadfile

ifndef VENV
  ifeq ($(PYTHON),)
    VENV := .venv
  else
    VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2] + sys.abiflags)')
    ifeq ($(VENV),.venv-)
      $(error PYTHON=$(PYTHON) does not run)
    endif
  endif
endif
MADE := $(VENV)/.made
RUN := $(VENV)/bin/python
# -qq: errors, and a compiler's words with them, but nothing else
PIP := $(RUN) -m pip install -qq --disable-pip-version-check --no-input

.PHONY: help demo test test-frameworks test-packaging bench bench-torch lint format sanitize cuda cuda12 mutants wheel cuda-wheel clean FORCE

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

# ----------------------------------------------------------------------------------------------- what one calls
demo: $(MADE)/demo.txt $(MADE)/core ## watch a ConvLSTM learn to predict handwritten digits in motion
	@$(VENV)/bin/fusecell train --check $(ARGS)

test: $(MADE)/test.txt $(MADE)/core ## the test suite, without what needs torch, jax or keras
	@$(RUN) -m pytest $(WORKERS) --ignore=tests/frameworks $(ARGS)

test-frameworks: $(MADE)/torch $(MADE)/frameworks.txt $(MADE)/core ## the tests against torch, keras, flax and haiku (installs them, over 1 GB)
	@$(RUN) -m pytest $(WORKERS) tests/frameworks $(ARGS)

test-packaging: $(MADE)/test.txt $(MADE)/dist.txt $(MADE)/core ## the tests that build a wheel and use it in a fresh environment
	@$(RUN) -m pytest tests/test_packaging.py --run-packaging $(ARGS)

bench: $(MADE)/torch $(MADE)/bench-cpu.txt $(MADE)/core ## ConvLSTMs on the CPU: torch, Keras, flax, fusecell (installs them, over 2 GB; ARGS=--quick)
	@$(RUN) bench/bench_cpu.py $(ARGS)

bench-torch: $(MADE)/torch $(MADE)/frameworks.txt $(MADE)/core ## training in PyTorch against what people use there (installs torch and keras)
	@$(RUN) bench/bench_torch.py $(ARGS)

lint: $(MADE)/lint.txt ## ruff, mypy, clang-format
	$(RUN) -m ruff check $(PYTHON_FOLDERS)
	$(RUN) -m ruff format --check $(PYTHON_FOLDERS)
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CORE_SOURCES)

format: $(MADE)/lint.txt ## let ruff and clang-format mend what they can
	$(RUN) -m ruff check --fix $(PYTHON_FOLDERS)
	$(RUN) -m ruff format $(PYTHON_FOLDERS)
	$(VENV)/bin/clang-format -i $(CORE_SOURCES)

sanitize: $(MADE)/test.txt $(MADE)/build.txt ## the core's tests under Address-, UndefinedBehavior- and ThreadSanitizer
	@tools/sanitize.sh $(RUN) address,undefined $(ARGS)
	@tools/sanitize.sh $(RUN) thread $(ARGS)

# Beside the core in use, which stays as it is. The first line installs a compiler where this machine has none.
CUDA_ARCHITECTURES ?= 80-real;90a-real
cuda: $(MADE)/build.txt $(MADE)/kernels.txt ## the CUDA kernels through nvcc, and what it made of each; needs no GPU
	@FUSECELL_CUDA=on $(RUN) tools/requirements.py build backend > $(MADE)/cuda && $(PIP) -r $(MADE)/cuda
	@echo "building the CUDA backend for $(CUDA_ARCHITECTURES)"
	@FUSECELL_CUDA=on FUSECELL_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)" SKBUILD_BUILD_DIR=build/cuda \
		CMAKE_ARGS="$(CMAKE_ARGS) -DFUSECELL_WERROR=ON" \
		$(PIP) --no-build-isolation --no-deps --upgrade --target build/cuda/installed .
	@$(RUN) tools/kernel_report.py build/cuda

cuda12: $(MADE)/kernels.txt ## whether CUDA 12, which is not on this machine, would take kernels and launches
	@$(RUN) tools/check_cuda12.py

mutants: $(MADE)/test.txt $(MADE)/core ## breaks the CUDA kernels on purpose, one way at a time: which test sees it (half an hour)
	@$(RUN) tools/mutants.py $(ARGS)

wheel: $(MADE)/dist.txt ## a source archive and a wheel in dist/
	@$(RUN) -m build

# 20 MB: a wheel that installs in seconds.
cuda-wheel: $(MADE)/dist.txt ## the wheel with the CUDA backend for every current GPU, in dist/
	@FUSECELL_CUDA=on SKBUILD_BUILD_DIR=build/cuda-wheel $(RUN) -m build --wheel
	@ls -l dist/*.whl
	@! find dist -name '*.whl' -size +20000000c | grep . || { echo "too large a wheel"; false; }

clean: ## remove what make made (environments, build, dist), but not runs
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------- the environment
PYTHON_FOLDERS := $(wildcard python tests tools bench examples)
CORE_SOURCES := $(sort $(shell find csrc -type f))
CORE_RECIPE := CMakeLists.txt $(wildcard cmake/*) pyproject.toml tools/build_backend.py

# What a stamp was made of stands in it. Another place, flag, or list of files makes it stale, as a newer file does.
VENV_KEY := $(CURDIR)
# The Python files count, too: an editable install knows those that were there.
PYTHON_MODULES := $(sort $(shell find python -name '*.py' -o -name '*.pyi'))
# The tests' third backend. Whoever has it keeps it, so that `make demo` after `make test` has nothing to build.
EMULATED := $(if $(filter test test-frameworks,$(MAKECMDGOALS))$(filter EMULATED=ON,$(file < $(MADE)/core)),ON,OFF)
# A compiler or a driver that appears later counts, too.
CUDA_KEY := $(FUSECELL_CUDA) $(FUSECELL_CUDA_ARCHITECTURES) $(CUDACXX) $(shell command -v nvcc nvidia-smi)
export CORE_KEY := $(strip $(CURDIR) WERROR=$(WERROR) EMULATED=$(EMULATED) CXX=$(CXX) $(CUDA_KEY) \
	$(CMAKE_ARGS) $(CORE_SOURCES) $(PYTHON_MODULES))
ifneq ($(and $(realpath $(RUN)),$(file < $(MADE)/venv)),$(VENV_KEY))
$(MADE)/venv: FORCE
endif
ifneq ($(file < $(MADE)/core),$(CORE_KEY))
$(MADE)/core: FORCE
endif

# A compiler that is asked for and that PATH does not have is one of the build requirements.
ifeq ($(FUSECELL_CUDA)$(shell command -v nvcc)$(findstring nvidia-cuda-nvcc,$(file < $(MADE)/build.txt)),on)
$(MADE)/build.txt: FORCE
endif

$(MADE)/venv:
	@tools/make_venv.sh $(VENV) $(PYTHON)
	@mkdir -p $(MADE)
	@printf '%s\n' '$(VENV_KEY)' > $@

$(MADE)/%.txt: $(MADE)/venv pyproject.toml tools/requirements.py
	@$(RUN) tools/requirements.py runtime $* > $@.new
	@cmp -s $@.new $@ || { echo "installing what the $* group needs"; $(PIP) -r $@.new; }
	@mv $@.new $@

$(MADE)/build.txt: $(MADE)/venv pyproject.toml tools/requirements.py tools/build_backend.py
	@echo "installing the build requirements"
	@$(RUN) tools/requirements.py build > $@.new
	@$(PIP) -r $@.new
	@$(RUN) tools/requirements.py backend >> $@.new
	@$(PIP) -r $@.new
	@mv $@.new $@

# The tests need some torch, whichever, for the CPU. An unpinned one can come with gigabytes of CUDA libraries, and so
# can this pin where the index has no smaller build under that number. `make test-frameworks TORCH=...` names another,
# and a torch that is already in the environment stays.
$(MADE)/torch: $(MADE)/test.txt
	@$(RUN) -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null || \
		{ echo "installing $(TORCH) (a large download)"; $(PIP) "$(TORCH)"; }
	@touch $@

# Editable, and without isolation: so the objects under build/ stay valid and a change recompiles what it must. The
# flags are given when they are off too, since CMake remembers the last ones.
$(MADE)/core: $(MADE)/build.txt $(CORE_SOURCES) $(CORE_RECIPE)
	@tools/check_machine.sh $(RUN) > /dev/null
	@echo "building the core (about a minute when nothing is built yet)"
	@CMAKE_ARGS="$(CMAKE_ARGS) -DFUSECELL_WERROR=$(WERROR) -DFUSECELL_EMULATED=$(EMULATED)" \
		$(PIP) --no-build-isolation --no-deps --editable .
	@printf '%s\n' "$$CORE_KEY" > $@
