# Two commands do everything: `make demo` and `make test`. Each builds .venv from the lock files.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
WORKERS ?= 3
DIST ?= dist

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons coverage check bench bench-overload bench-peers chaos test-docs test-big test-proxies test-alerts wheel deb test-deb test-host test-systemd lock clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ARC needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 2; }

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked dependencies into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "installing the locked test tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/.runtime  ## server, agent and sender at work, in under a minute
	@$(BIN)/python scripts/demo.py

test: $(VENV)/.dev  ## the whole suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-pythons:  ## the whole suite on each Python that this machine has
	@for version in 3.11 3.12 3.13; do \
	  if ! python$$version -c '' 2>/dev/null; then echo "Python $$version is not on this machine"; continue; fi; \
	  echo "Python $$version"; \
	  $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON=python$$version test || exit 1; \
	done

coverage: $(VENV)/.dev  ## branch coverage by room, from the whole suite; a room below its floor fails
	@$(BIN)/python scripts/coverage_by_room.py $(COVERAGE) -n $(WORKERS)

check: $(VENV)/.dev  ## lint, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

bench: $(VENV)/.dev  ## measure; see docs/performance.md
	@$(BIN)/python benchmarks/lifecycle.py
	@$(BIN)/python benchmarks/end_to_end.py

bench-overload: $(VENV)/.dev  ## an honest load beside each attack and beside upkeep, and 10,000 agents that wait
	@$(BIN)/python benchmarks/overload.py
	@$(BIN)/python benchmarks/upkeep.py

$(PEERS)/.built: benchmarks/peers.txt
	@echo "installing the peers into $(PEERS) …"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt && \
	  touch $@ || echo "not all of the peers could be installed"

bench-peers: $(VENV)/.dev $(PEERS)/.built  ## beside Celery on Redis and Procrastinate on Postgres
	@$(BIN)/python benchmarks/peers.py $(PEERS)/bin/python

chaos: $(VENV)/.dev  ## kills at every boundary and at random moments
	@$(BIN)/python -m pytest tests/chaos -m "" -p no:xdist -s
	@$(BIN)/python -m pytest tests/unit tests/integration tests/acceptance -m chaos -p no:xdist -s

test-docs: $(VENV)/.dev  ## the examples of all pages of the docs, typed
	@$(BIN)/python -m pytest tests/acceptance/test_docs_examples.py -m "" -n $(WORKERS)

test-big: $(VENV)/.dev  ## 200 MB bodies each way
	@$(BIN)/python -m pytest tests/acceptance -m big -p no:xdist

test-proxies: $(VENV)/.dev  ## the examples of docs/server.md under the real nginx and Caddy
	@for program in nginx caddy; do \
	  command -v $$program >/dev/null || [ "$$(id -u)" != 0 ] || apt-get install -qq --no-install-recommends -y $$program || true; \
	done
	@$(BIN)/python -m pytest tests/acceptance/test_proxies.py -m proxies -n $(WORKERS) --dist worksteal

test-alerts: $(VENV)/.dev  ## config/alerts.yaml under Prometheus' promtool
	@$(BIN)/python -m tests.support.promtool
	@$(BIN)/python -m pytest tests/acceptance/test_alerts.py -m alerts -p no:xdist

wheel: $(VENV)/.runtime  ## the wheel that other hosts install, into dist/
	@rm -f $(DIST)/*.whl
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(DIST) .
	@ls $(DIST)/*.whl

deb: $(VENV)/.runtime  ## Debian packages of agent and server, into dist/
	@$(BIN)/python scripts/build_deb.py

test-deb: $(VENV)/.dev  ## build, install, run, remove and purge them, in a scratch root
	@$(BIN)/python -m pytest tests/integration/install/test_deb.py -m big -p no:xdist

test-host: $(VENV)/.dev  ## install, upgrade, roll back and uninstall in a scratch root
	@$(BIN)/python -m pytest tests/integration/install -m host -p no:xdist

test-systemd: $(VENV)/.dev  ## server and agent under a real systemd, in a Debian root (needs root)
	@$(BIN)/python -m tests.support.booted_root
	@$(BIN)/python -m pytest tests/systemd -m systemd -n $(WORKERS) --dist loadfile -p no:randomly --timeout 1200

lock:  ## renew the lock files (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra server --group runtime-build pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra server --extra oidc --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock

clean:  ## remove what make made
	rm -rf $(VENV) $(PEERS) .venv-3.* .systemd-root .promtool .demo .coverage .pytest_cache .ruff_cache .hypothesis build dist
