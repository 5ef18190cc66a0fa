# What a newcomer runs: `make demo` and `make test`. Both install what is missing first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# PostgreSQL never runs as root, so its archive_command runs our programs as another user: the virtual
# environment must be reachable for everybody. A checkout below a closed folder (/root) gets one elsewhere.
REACHABLE := $(shell deploy/venv-place)
VENV ?= $(REACHABLE)
PYTHON ?= $(shell for p in /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3; do [ -x $$p ] && echo $$p && break; done)
BIN := $(VENV)/bin
# PostgreSQL's user cannot read the sources of a closed checkout either: it gets a copy, renewed when they change.
CLOSED := $(filter-out $(CURDIR)/.venv,$(REACHABLE))
SOURCES := $(if $(CLOSED),$(shell find drservice -type f -not -path '*/__pycache__/*' -not -path '*/.*'))
STAMPS := $(VENV)/.stamps
PYTEST_ARGS ?=

.PHONY: help setup quick demo demo-web test test-browser test-docker test-ceph test-odoo test-long screenshots check bench bench-files bench-files-million bench-proof bench-load bench-crash bench-stream bench-stream-floor bench-web fuzz chaos lock compose-config format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMPS)/ready ## install what is missing (Debian packages, a virtual environment)

# A target of its own: which Python there is, is looked up when the recipe that needs it begins.
$(STAMPS)/packages: deploy/install-system-packages
	deploy/install-system-packages
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/requirements: requirements.lock $(STAMPS)/packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/ready: $(STAMPS)/requirements pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(if $(CLOSED),--force-reinstall .,--editable .)
	@$(if $(CLOSED),rm -rf build)
	chmod -R go+rX $(VENV)
	@touch $@

$(STAMPS)/tests: deploy/install-system-packages
	deploy/install-system-packages tests
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/browser: deploy/install-system-packages
	deploy/install-system-packages browser
	@mkdir -p $(STAMPS) && touch $@

demo: setup ## the whole story on this machine, in about a minute (ARGS=--json for the numbers, --short without the week)
	$(BIN)/drservice demo --evidence demo-evidence $(ARGS)

demo-web: setup ## the same, and then pages to look at: prints address and login; Ctrl-C removes everything
	$(BIN)/drservice demo --web $(ARGS)

test: setup $(STAMPS)/tests $(STAMPS)/browser ## every test that fits in CI
	@failed=0; \
	$(BIN)/python -m pytest -m "browser and not long" tests/browser $(PYTEST_ARGS) || failed=1; \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not browser and not docker" $(PYTEST_ARGS) || failed=1; \
	exit $$failed

test-browser: setup $(STAMPS)/browser ## the pages in headless Chromium: one estate, one browser, about a minute
	$(BIN)/python -m pytest -m "browser and not long" tests/browser $(PYTEST_ARGS)

test-docker: setup ## images, compose file and systemd units for real, in an engine of their own (root; about 15 minutes)
	deploy/offline/install-engine $(abspath $(STAMPS))/docker
	$(BIN)/python -m pytest -q -p no:randomly tests/unit/deploy
	DRSERVICE_DOCKER_PLUGINS=$(abspath $(STAMPS))/docker $(BIN)/python -m pytest -m docker tests/docker $(PYTEST_ARGS)

test-ceph: setup $(STAMPS)/tests ## the contract of stores and the main job on a real gateway with Object Lock (root; SUITE=trixie; 6 minutes)
	tests/ceph/install-ceph $(abspath $(STAMPS))/ceph-$(or $(SUITE),trixie) $(or $(SUITE),trixie)
	DRSERVICE_CEPH=$(abspath $(STAMPS))/ceph-$(or $(SUITE),trixie) $(BIN)/python -m pytest -p no:randomly -k ceph \
	  tests/ceph tests/contract/test_objectstore.py $(PYTEST_ARGS)

test-odoo: setup $(STAMPS)/tests ## a real Odoo 19 is lost under load and recovered in a sandbox; prints what it measured (root; 6 minutes)
	tests/odoo/install-odoo $(abspath $(STAMPS))/odoo
	DRSERVICE_ODOO=$(abspath $(STAMPS))/odoo $(BIN)/python -m pytest -p no:randomly -m odoo tests/odoo $(PYTEST_ARGS)

screenshots: setup $(STAMPS)/browser ## renew the pictures of the README from the estate that those tests look at
	$(BIN)/python -m tests.browser.screenshots docs/images

test-long: setup $(STAMPS)/tests ## the tests that take too long for every commit
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "long and not docker" $(PYTEST_ARGS)

check: setup ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@failed=0; $(BIN)/mypy & types=$$!; \
	$(BIN)/lint-imports --no-cache || failed=1; \
	$(BIN)/python -m pytest -q tests/test_architecture.py || failed=1; \
	wait $$types || failed=1; \
	exit $$failed

quick: setup $(STAMPS)/tests ## check, and the fast tests: what to run before a commit (2 minutes)
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -q -n 2 tests/unit

bench: setup ## race the main job against pgBackRest, which it fetches from Debian (ROUNDS=2: a quarter of an hour)
	$(BIN)/python benchmarks/race.py --rounds $(or $(ROUNDS),2) --output benchmarks/results/race.json $(ARGS)
	$(BIN)/python benchmarks/report.py

bench-files: setup ## race the filestore against restic and borg, which it fetches from Debian
	$(BIN)/python benchmarks/filestore.py --rounds $(or $(ROUNDS),3) --output benchmarks/results/filestore.json

bench-files-million: setup ## how the filestore grows to a million documents, with restic beside the largest (20 minutes, 21 GB; ARGS=--alone without it)
	$(BIN)/python benchmarks/filestoregrowth.py --output benchmarks/results/filestore-million.json $(ARGS)

bench-proof: setup ## time a sandbox until it is ready, and the verification of 10,000 records
	$(BIN)/python benchmarks/proof.py

bench-web: setup ## pages and API with 1,000 services and 100,000 runs, and 200 viewers of a running backup
	$(BIN)/python benchmarks/web.py --output benchmarks/results/web.json $(ARGS)

fuzz: setup ## send every operation of the API what its description allows and forbids, as every role (EXAMPLES=200)
	$(BIN)/python benchmarks/fuzz.py --examples $(or $(EXAMPLES),200) --output docs/fuzz.md

bench-load: setup ## live through a day of 200 services with three nodes and count every slot (HOURS=24)
	$(BIN)/python benchmarks/load.py --hours $(or $(HOURS),24) --output benchmarks/results/load.json

bench-crash: setup $(STAMPS)/tests ## destroy a host under load, 45 times, and count which promised commits are lost (a quarter of an hour)
	$(BIN)/python benchmarks/crash.py --output benchmarks/results/crash.json $(ARGS)
	$(BIN)/python benchmarks/crashreport.py

bench-stream: setup $(STAMPS)/tests ## how old WAL is that is not in the bucket, catching up, memory, and what commits pay (11 minutes)
	$(BIN)/python benchmarks/stream.py --output benchmarks/results/stream.json $(ARGS)
	$(BIN)/python benchmarks/crashreport.py

bench-stream-floor: setup $(STAMPS)/tests ## what commits pay for the receiver, pgBackRest, nobody, and the cheapest shipper that one could write (10 minutes)
	$(BIN)/python benchmarks/streamfloor.py --output benchmarks/results/streamfloor.json $(ARGS)

chaos: setup ## kill -9 processes at random moments under load and write docs/chaos.md (KILLS=100 SEED=7)
	$(BIN)/python benchmarks/chaos.py --kills $(or $(KILLS),100) $(if $(SEED),--seed $(SEED)) --output docs/chaos.md

compose-config: setup ## validate docker-compose.yml (also by docker compose where that is installed)
	$(BIN)/python -m pytest -q -p no:randomly tests/unit/deploy/test_deployment.py
	@if docker compose version >/dev/null 2>&1; then docker compose config --quiet && echo "docker compose accepts it"; \
	else echo "docker compose is not installed: validated by our own test only"; fi

format: setup ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## renew requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra dev -o requirements.lock pyproject.toml

clean: ## remove what make made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build ./*.egg-info
