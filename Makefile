# The front door. `make demo` and `make test` need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test coverage check lint types imports debian-packages lock clean

help:
	@echo "make demo    a running system with a simulated fleet, dashboard on http://127.0.0.1:8080"
	@echo "make test    the whole test suite, from nothing"
	@echo "make check   lint, types and the quick tests (about two minutes)"
	@echo "make clean   remove the virtual environment and caches (data stays in .nevstream)"

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nevstream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing pinned dependencies into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@exec $(BIN)/nevstream demo

test: $(READY) debian-packages
	$(BIN)/python -m pytest

# Tracing makes every test half as slow again, sees no kernel and no process but pytest's own: for who asks for it.
coverage: $(READY) debian-packages
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

check: $(READY) lint types imports
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

# Tests with a real broker's clients want these; where they cannot be installed the tests are skipped by name.
debian-packages:
	@missing=""; \
	command -v mosquitto >/dev/null || test -x /usr/sbin/mosquitto || missing="$$missing mosquitto"; \
	command -v mosquitto_pub >/dev/null || missing="$$missing mosquitto-clients"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Debian packages:$$missing"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; } \
	      || echo "could not install$$missing: the tests that want them are skipped"; \
	  else echo "not installed:$$missing (tests that want them are skipped); apt-get install$$missing"; fi; \
	fi

# Pinned versions of everything, for machines that must all agree.
lock:
	$(PYTHON) -m venv /tmp/nevstream-lock && /tmp/nevstream-lock/bin/pip install --quiet -U pip && \
	/tmp/nevstream-lock/bin/pip install --quiet hatchling editables ".[dev]" && \
	/tmp/nevstream-lock/bin/pip freeze --exclude nevstream | grep -v '^nevstream' > requirements.lock; rm -rf /tmp/nevstream-lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
