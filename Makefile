# Python 3.11 or newer and make are all that is needed; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions that everything was tested with; CONSTRAINTS= takes the newest. constraints/cpu.txt keeps only torch, at the
# version whose wheel exists for machines without a GPU.
CONSTRAINTS ?= constraints/known-good.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help demo demo-smoke demo-full results tables test test-oldest test-newest constraints gpu-check quality format docs test-app \
  release-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## tune a detector and a captioner, against more MLE and better decoding: runs/demo/
	$(BIN)/python experiments/demo.py

demo-smoke: $(VENV)/.demo  ## every line of the demo in under a minute, on numbers that show nothing: runs/smoke/
	rm -rf runs/smoke
	$(BIN)/python experiments/demo.py --smoke true

demo-full: $(VENV)/.demo  ## the same, after the MLE models that the demo starts from, which take an hour and a half
	$(BIN)/python experiments/demo.py --full true

results: $(VENV)/.demo  ## the experiments with scenes, some hours: experiments/results/; an interrupted one goes on
	$(BIN)/python experiments/detection_study.py --situation incomplete --seeds 0 1 --rows mle_continued tuned_map tuned_map_64 tuned_map_continued
	$(BIN)/python experiments/scene_captioning_study.py

tables: $(VENV)/.demo  ## the tables of README.md and docs/ anew from experiments/results/
	$(BIN)/python experiments/write_tables.py

test: $(VENV)/.test  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-app: $(VENV)-app/.test  ## the two pages, in an environment of its own, for gradio holds Pillow below 13
	OMP_NUM_THREADS=1 $(VENV)-app/bin/python -m pytest tests/test_preferences.py

test-oldest: $(VENV)-oldest/.test  ## what touches other libraries, with their lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m compatibility

test-newest: $(VENV)/.created  ## the same with the newest versions there are today
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -m compatibility

constraints: $(VENV)/.created  ## constraints/known-good.txt anew, from the newest versions there are today
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	DS_BUILD_OPS=0 $(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[demo,test,quality,docs]"
	DS_BUILD_OPS=0 $(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[deepspeed]"
	(echo "# Made by \`make constraints\`: every distribution of the extras demo, test, quality, docs and deepspeed."; \
	  $(VENV)-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints/known-good.txt
	rm -rf $(VENV)-constraints

gpu-check:  ## on a machine with one GPU, nothing installed: gpu_check.json, sized for 8 minutes; PYTHON= has torch
	PYTHONPATH=src:benchmarks $(PYTHON) benchmarks/gpu_check.py

quality: $(VENV)/.quality  ## lint, format and types, as CI checks them
	$(BIN)/ruff check src tests examples experiments benchmarks setup.py
	$(BIN)/ruff format --check src tests examples experiments benchmarks setup.py
	$(BIN)/mypy

format: $(VENV)/.quality  ## let ruff mend what it can
	$(BIN)/ruff check --fix src tests examples experiments benchmarks setup.py
	$(BIN)/ruff format src tests examples experiments benchmarks setup.py

docs: $(VENV)/.docs  ## the documentation as a website: site/
	$(BIN)/mkdocs build --strict

# What a user gets from an index, not this folder: the README's code runs from here for the checkpoint that it names.
release-check: $(VENV)/.created  ## sdist and wheel built; the wheel, installed alone, runs the README's code
	rm -rf dist $(VENV)-release
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) "$$(ls dist/*.whl)[demo]"
	$(VENV)-release/bin/vision-rl env
	$(VENV)-release/bin/python tests/scripts/readme.py
	$(VENV)-release/bin/python -c 'import vision_rl; assert "site-packages" in vision_rl.__file__, vision_rl.__file__'

clean:  ## remove what the other targets made
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

# DeepSpeed compiles nothing here: its CPU path needs no extension.
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
