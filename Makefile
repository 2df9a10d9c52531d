# Everything runs from .venv, which a bare Python 3.11+ with pip can make; nothing is installed outside the checkout
# except the system packages of servers that `make test` starts (only as root, only where apt is).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Most tests wait for servers, disks and leases more than they compute.
JOBS   := 4
# Where Python is told to keep no bytecode, each of the hundreds of processes of a test run would compile everything anew: hence
# the empty PYTHONDONTWRITEBYTECODE.

.DEFAULT_GOAL := help
.PHONY: help demo test conformance lint format docs simulate-scaling bench bench-memory bench-tracing bench-transforms bench-fairness canaries crash soak fuzz lock audit sbom licences wheel dashboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Transload needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Say which: make PYTHON=python3.12 …"; exit 1; }
	@echo "setting up $(VENV) (about a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --require-hashes -r requirements.lock
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP) ## stage real files, run the worker until idle, show and verify what came out (FROM=DIR for your own)
	@$(BIN)/transload --home .demo demo --from "$(or $(FROM),.)"

test: $(STAMP) ## every test against real services, which it starts itself; ends with the table of what ran (ARGS='-m slow': the long ones)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

conformance: $(STAMP) ## hold every storage backend to the port's suite and write docs/conformance.md (ARGS=--slow: the long ones too)
	@$(BIN)/python -m tests.conformance.table --jobs $(JOBS) $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## let ruff write the layout and the safe fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only .

bench: $(STAMP) ## 2,000 resources of 10 kB, file to file, beside a bare thread pool with the same fsyncs
	@$(BIN)/python -m tests.benchmarks.throughput $(ARGS)

crash: $(STAMP) ## SIGKILL at every failpoint on every queue, ledger and store, and the table of it (ARGS=--short: a sample)
	@$(BIN)/python -m tests.faults.crash $(ARGS)

canaries: $(STAMP) ## every adapter into every kind of trouble with a canary for its secret, and where the canary was seen (ARGS='--only s3')
	@$(BIN)/python -m tests.faults.canaries --jobs $(JOBS) $(ARGS)

soak: $(STAMP) ## three real workers under a random load, killed and held up at random (MINUTES=4, HOURS=, SEED=, ARGS=--short)
	@$(BIN)/python -m tests.faults.soak $(if $(HOURS),--hours $(HOURS),$(if $(MINUTES),--minutes $(MINUTES))) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench-memory: $(STAMP) ## peak RSS of the worker with one 4 GiB payload: embedded, S3 on LocalStack, and through gunzip and unzip (ARGS="--only gunzip")
	@$(BIN)/python -m tests.benchmarks.memory $(ARGS)

lock: $(STAMP) ## resolve the dependencies anew into requirements.lock (hashes, no index address)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements.lock

audit: $(STAMP) ## known vulnerabilities of what is locked, by PyPI or OSV; fails where neither answers (ARGS=--where-it-can: then says so)
	@$(BIN)/python -m tests.supply.audit $(ARGS)

sbom: $(STAMP) ## CycloneDX bill of materials of a worker with all extras, into dist/
	@$(BIN)/python -m tests.supply.sbom

licences: $(STAMP) ## write docs/licences.md out of the locked packages' metadata
	@$(BIN)/python -m tests.supply.licences

wheel: $(STAMP) ## wheel and source distribution into dist/, the same bytes for the same commit
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(BIN)/hatchling build

fuzz: $(STAMP) ## hostile input for every decoder (MINUTES=5, SEED=, ARGS=zips: only that one)
	@$(BIN)/python -m tests.fuzz $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench-transforms: $(STAMP) ## MB/s of every codec, beside the plain library and beside Python's own
	@$(BIN)/python -m tests.benchmarks.transforms $(ARGS)

bench-tracing: $(STAMP) ## what tracing costs a worker, beside the same work untraced
	@$(BIN)/python -m tests.benchmarks.tracing $(ARGS)

bench-fairness: $(STAMP) ## p50 and p99 of a quiet recipe beside floods, bombs, poison and slow payloads of another (ARGS="--only bombs")
	@$(BIN)/python -m tests.benchmarks.fairness $(ARGS)

docs: $(STAMP) ## the documentation as a site in .site/, with every link of it checked
	@$(BIN)/python -m tests.support.mkdocs

simulate-scaling: $(STAMP) ## what KEDA's loop does to busy pods, with the chart's defaults and without: the tables of docs/scaling.md
	@$(BIN)/python -m tests.benchmarks.scaling

dashboard: $(STAMP) ## write helm/transload/files/dashboard.json out of tests/dashboard/panels.py
	@$(BIN)/python -m tests.dashboard

clean: ## remove everything the other targets made
	rm -rf $(VENV) .services .site .demo .bench dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
