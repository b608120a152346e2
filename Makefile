# `make` lists what there is. `make run` is all a first look needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# Named after the lock's content and this folder, and written last: an interrupted set-up goes on; a changed lock, and a
# .venv that came from elsewhere with its folder, are set up again.
STAMP := .venv/.ready-$(shell { cat requirements.lock; pwd -P; } | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help run real test lint surroundings faults audit setup compose flow ui docs study clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup  ## set up, bring every result up to date, and show it
	@dvc repro
	@printf '\n'; cat reports/results.md
	@printf '\nEvery feature: reports/report.html. The picture: reports/rounds.png. All figures: reports/comparison.json.\n'
	@printf 'Prefect, MLflow and the reports as pages: make ui\n'

real: setup  ## fetch a pretrained model, SmolLM2 (93 MB), and take it through the loop; WITH as for compose
	@python -m tasks.workspace.weights smollm2
	@sae-explainer compose experiment=smollm2 $$(python -m tasks.settings.precision) $(WITH)
	@dvc repro
	@printf '\n'; cat reports/results.md
	@printf '\nEvery feature: reports/report.html. Back to the sandbox: make compose\n'

test: setup  ## run the tests
	@python -m pytest

lint: setup  ## hold the code against its rules: ruff's, ruff's format, types of the library
	@ruff check
	@ruff format --check --quiet || { echo "error: the files above are not formatted; run ruff format"; exit 1; }
	@ty check --quiet

surroundings: setup  ## run the whole pipeline in odd places: moved, without git, read-only, an ASCII terminal, and so on
	@SURROUNDINGS=all python -m pytest tests/test_surroundings.py

faults: setup  ## kill the pipeline at random moments, again and again, and compare what it makes in the end; an hour
	@FAULTS=50 python -m pytest -n0 tests/test_faults.py

# Fails where the database of advisories cannot be asked: a package that was not looked up is not one without faults.
audit: setup  ## look every package of requirements.lock up in PyPI's advisories
	@"$(PYTHON)" -m venv .cache/audit && .cache/audit/bin/python -m pip install --quiet pip-audit
	@.cache/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

setup: $(STAMP)  ## make or complete .venv from requirements.lock
	@python -m tasks.workspace.folder

$(STAMP): requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or say make PYTHON=/path/to/python"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "set-up 1/2: .venv with $$("$(PYTHON)" --version 2>&1)"; "$(PYTHON)" -m venv .venv; }
	@echo "set-up 2/2: $$(grep -c == requirements.lock) packages from requirements.lock, a few minutes the first time"
	@$(BIN)/python -m venv --without-pip .venv; $(BIN)/python -m tasks.workspace.relocate
	@python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@rm -f .venv/.ready-*; touch $@; echo "set-up done"

compose: setup  ## write params.yaml from conf/, e.g. make compose WITH="experiment=pydoc seed=1"
	@sae-explainer compose $(WITH)

flow: setup  ## as run, through Prefect
	@python -m flows.pipeline $(WITH)

docs: setup  ## open what Great Expectations found in the preference sets
	@sae-explainer data-docs

ui: setup  ## the control room: Prefect, its deployments and MLflow as pages; ctrl-c stops all
	@python -m flows.ui $(WITH)

study: setup  ## the experiments behind the figures; WITH="--plan ablation" for those of docs/ABLATION.md
	@sae-explainer study $(WITH)

clean:  ## remove every result (keeps .venv and DVC's cache)
	@rm -rf data && mkdir -p data/rounds && touch data/rounds/.gitkeep  # the comparison reads that folder in any case
	@rm -rf mlruns/mlflow.db* mlruns/artifacts reports/data_docs .prefect
