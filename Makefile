# You need only Python 3.11 or newer and make; everything else is installed into .venv and folders beside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions with which everything was tested; CONSTRAINTS= takes the newest ones instead. constraints/cpu.txt fixes only torch,
# at the version whose wheel is made for machines without a GPU.
CONSTRAINTS ?= constraints/known-good.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help demo demo-smoke demo-full results tables test test-oldest test-newest constraints gpu-check quality format docs test-app \
  release-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## tune a detector and a captioner, compared with more MLE and better decoding: runs/demo/
	$(BIN)/python experiments/demo.py

demo-smoke: $(VENV)/.demo  ## every line of the demo in under a minute; its numbers mean nothing: runs/smoke/
	rm -rf runs/smoke
	$(BIN)/python experiments/demo.py --smoke true

demo-full: $(VENV)/.demo  ## the demo, but first train the MLE models from which it starts, in an hour and a half
	$(BIN)/python experiments/demo.py --full true

results: $(VENV)/.demo  ## the experiments with scenes, in some hours; resumes an interrupted one: experiments/results/
	$(BIN)/python experiments/detection_study.py --situation incomplete
	$(BIN)/python experiments/scene_captioning_study.py

tables: $(VENV)/.demo  ## write the tables of README.md and docs/ from experiments/results/
	$(BIN)/python experiments/write_tables.py

test: $(VENV)/.test  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 1

test-app: $(VENV)-app/.test  ## the tests of the two pages, in an environment of its own: gradio needs Pillow below 13
	OMP_NUM_THREADS=1 $(VENV)-app/bin/python -m pytest tests/test_preferences.py

test-oldest: $(VENV)-oldest/.test  ## the compatibility tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m compatibility

test-newest: $(VENV)/.created  ## the compatibility tests with today's newest versions
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -m compatibility

constraints: $(VENV)/.created  ## write constraints/known-good.txt from today's newest versions
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	DS_BUILD_OPS=0 $(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[demo,test,quality,docs]"
	DS_BUILD_OPS=0 $(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[deepspeed]"
	(echo "# Made by \`make constraints\`: every distribution of the extras demo, test, quality, docs and deepspeed."; \
	  $(VENV)-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints/known-good.txt
	rm -rf $(VENV)-constraints

gpu-check:  ## check a machine with one GPU in 8 minutes, without installation (PYTHON= has torch): gpu_check.json
	PYTHONPATH=src:benchmarks $(PYTHON) benchmarks/gpu_check.py

quality: $(VENV)/.quality  ## check lint, format and types, as CI does
	$(BIN)/ruff check src tests examples experiments benchmarks setup.py
	$(BIN)/ruff format --check src tests examples experiments benchmarks setup.py
	$(BIN)/mypy

format: $(VENV)/.quality  ## let ruff fix what it can
	$(BIN)/ruff check --fix src tests examples experiments benchmarks setup.py
	$(BIN)/ruff format src tests examples experiments benchmarks setup.py

docs: $(VENV)/.docs  ## build the documentation as a website: site/
	$(BIN)/mkdocs build --strict

# Tests what a user gets from an index, not this folder. The README's code is started here because it names a checkpoint.
release-check: $(VENV)/.created  ## build sdist and wheel; install the wheel alone and run the README's code with it
	rm -rf dist $(VENV)-release
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) "$$(ls dist/*.whl)[demo]"
	$(VENV)-release/bin/vision-rl env
	$(VENV)-release/bin/python tests/scripts/readme.py
	$(VENV)-release/bin/python -c 'import vision_rl; assert "site-packages" in vision_rl.__file__, vision_rl.__file__'

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV)-app $(VENV)-oldest $(VENV)-newest $(VENV)-release dist runs site .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)-oldest/.test: $(VENV)/.created pyproject.toml constraints/cpu.txt
	rm -rf $(VENV)-oldest
	$(PYTHON) -m venv $(VENV)-oldest
	$(PYTHON) constraints/oldest.py > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -c $(VENV)-oldest/oldest.txt -e ".[test]"
	@touch $@

$(VENV)-app/.test: $(VENV)/.created pyproject.toml constraints/cpu.txt
	rm -rf $(VENV)-app
	$(PYTHON) -m venv $(VENV)-app
	$(VENV)-app/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[app,test]"
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml
	$(PIP) -e ".[demo]"
	@touch $@

# DeepSpeed need not compile anything: its CPU path needs no extension.
$(VENV)/.test: $(VENV)/.created pyproject.toml
	$(PIP) -e ".[test]"
	DS_BUILD_OPS=0 $(PIP) -e ".[deepspeed]"
	@touch $@

$(VENV)/.quality: $(VENV)/.created pyproject.toml
	$(PIP) -e ".[quality]"
	@touch $@

$(VENV)/.docs: $(VENV)/.created pyproject.toml
	$(PIP) -e ".[docs]"
	@touch $@
