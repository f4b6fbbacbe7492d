# Two commands: `make quickstart` and `make test`. Both set up .venv themselves; nothing but Python 3.11+ is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-lowest walk notebooks test-notebooks test-slow lint docs release tables clean

$(READY): pyproject.toml Makefile data/requirements-no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "LAFR needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "installing into .venv (torch is large: about 5 GB, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision 'torch!=2.13.0'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r data/requirements-no-deps.txt
	@# Compared with in tests and benchmarks, never installed; both report it and continue where it is missing.
	@-$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--no-binary :all: basicsr==1.4.2 -d .venv/reference
	@touch $@

quickstart: $(READY)
	@echo "1/4  degrade a photograph (scikit-image's astronaut)"
	@$(BIN)/python scripts/prepare_data.py output=runs/quickstart
	@echo "2/4  restore it with the shipped miniature"
	@$(BIN)/python scripts/restore.py runs/quickstart/lq -o runs/quickstart/restored
	@echo "3/4  evaluate on seven packaged faces, eight degraded samples each"
	@$(BIN)/python scripts/eval.py benchmark=mini
	@echo "4/4  train the three stages for a few steps (it learns nothing: it shows that every part runs)"
	@$(BIN)/python scripts/train.py +experiment=smoke
	@echo
	@echo "look at   runs/quickstart/astronaut_sheet.png          the face and its degraded copies"
	@echo "          runs/quickstart/restored/side_by_side/       LQ | restored"
	@echo "          runs/eval/mini/mini/faces.png                best, median, worst: LQ | restored | HQ"
	@echo "          runs/smoke/restoration/validation/           an image from training"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4

# Without the page: Gradio asks for newer packages than LAFR does.
LOW := .venv-lowest/bin/python
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(LOW) .ci/lowest.py > .venv-lowest/constraints.txt
	$(LOW) -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt \
		-e '.[dev]'
	$(LOW) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r data/requirements-no-deps.txt
	OMP_NUM_THREADS=1 $(LOW) -m pytest -q -n logical --maxprocesses 4

walk: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/walks/test_headline.py

notebooks: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python scripts/notebooks.py

# In folders of their own; the stored ones and their outputs are not changed.
test-notebooks: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m 'slow or not slow' tests/walks/test_notebooks.py

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own, of the extra "docs" alone: without torch it is there in seconds.
DOCS := .venv-docs/.ready
$(DOCS): pyproject.toml
	@$(PYTHON) -m venv .venv-docs
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> .venv-docs/requirements.txt
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-docs/requirements.txt
	@touch $@

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "open site/index.html"

release: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

tables: $(READY)
	$(BIN)/python -m scripts.benchmarks pages

clean:
	rm -rf .venv .venv-docs .venv-lowest runs site dist build *.egg-info
