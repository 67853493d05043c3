# SPDX-License-Identifier: Apache-2.0
# make demo    a minute of video from a story, on a fresh machine      make setup   just the environment
# make test    the whole fast suite                                    make check   what CI asks: format, lint, types, tests
# make kernels the tests that need an accelerator                      make clean   away with the environment and the caches
# make docs    the site, in build/docs
# make interop the reference weights of Wan and SkyReels-V2 once more, in torch, and what is held against them
# make bench   ours against the peers on this machine, tables in docs/benchmarks.md (make bench LEG=gpu on an H200)
# make kernels-aot  kernels through the compilers of TPUs and of an H200, without either (about 500 MB of wheels)
PYTHON ?= python3
VENV ?= .venv
# Two cores share two workers well; on a larger machine: make test WORKERS=8
WORKERS ?= 2
PYTEST_ARGS ?=
BIN := $(VENV)/bin
# the pins that were tested with this Python, when there are some
PINS = $(wildcard constraints/py$(shell $(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt)
INSTALL = $(BIN)/python -m pip install -q --no-input --disable-pip-version-check $(addprefix -c ,$(PINS))

.PHONY: demo setup test smoke check docs kernels kernels-aot bench interop clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/jaxvid demo

setup: $(VENV)/.installed

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

# the short round of .ci/run on a second Python
smoke: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "smoke and not slow" $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) --no-print-directory test

# nitpicky, and a warning is an error
docs: $(VENV)/.installed-docs
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -n -W --keep-going docs build/docs
	@echo build/docs/index.html

kernels: $(VENV)/.installed-test
	JAX_PLATFORMS=$${JAX_PLATFORMS-} $(BIN)/python -m pytest -q tests/ops tests/pallas_kernels $(PYTEST_ARGS)

interop: $(VENV)/.installed-interop
	$(BIN)/python -m tests.interop.references --check
	$(BIN)/python -m pytest -q tests/interop tests/io/test_pth.py tests/data/test_tokens.py $(PYTEST_ARGS)

# ptxas and libtpu need no device; without their wheels (no network) what needs them is skipped
kernels-aot: $(VENV)/.installed-test
	-$(BIN)/python -m pip install -q --no-deps libtpu nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-nvdisasm \
	  $$($(BIN)/python -c 'import jax; print("jax-cuda13-plugin==%s jax-cuda13-pjrt==%s" % ((jax.__version__,) * 2))')
	$(BIN)/python -m pytest -q -m slow tests/pallas_kernels/test_aot.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q tests/ops/test_ring.py -k schedule_of_a_tpu $(PYTEST_ARGS)

# torch is a peer, not a dependency: name an interpreter that has it with TORCH=...
LEG ?= cpu
TORCH ?= $(BIN)/python
bench: $(VENV)/.installed
	JAX_PLATFORMS=$${JAX_PLATFORMS-} $(BIN)/python -m experiments.e001_bench.run --leg $(LEG) --torch $(TORCH) --write docs/benchmarks.md

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build docs/reference/generated *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# pip is the last thing that venv makes: an interrupted one is made again
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxvid: $(PYTHON) is missing or older than Python 3.11; name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "jaxvid: $(PYTHON) cannot make an environment in $(VENV) (on Debian and Ubuntu: apt install python3-venv)"; rm -rf $(VENV); exit 1; }

# A stamp per set of extras: nothing is installed twice, and a finished environment needs no network.
$(VENV)/.installed: EXTRAS =
$(VENV)/.installed-test: EXTRAS = [test]
$(VENV)/.installed-dev: EXTRAS = [dev]
$(VENV)/.installed-docs: EXTRAS = [docs]
$(VENV)/.installed-interop: EXTRAS = [test,interop]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs $(VENV)/.installed-interop: setup.cfg pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/pip
	@echo "jaxvid: installing .$(EXTRAS) into $(VENV) (about 1 GB, a minute or two the first time)"
	@$(INSTALL) -e '.$(EXTRAS)' || { \
	  echo "jaxvid: the installation failed, see above. Without a network, point pip at a folder of wheels:"; \
	  echo "jaxvid:   PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels make $(MAKECMDGOALS)"; exit 1; }
	@touch $@
