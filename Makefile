PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-page test-oldest test-newest check docs screenshots format clean

demo: $(INSTALLED)
	$(BIN)/chiaroscuro compare

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

# The page in a browser, which is installed if there is none.
test-page: $(INSTALLED)
	command -v chromium > /dev/null || apt-get install --yes --quiet chromium
	$(BIN)/pytest tests/app

# The suite with the oldest versions of the dependencies that are allowed, and with the newest.
test-oldest test-newest: test-%:
	rm -rf $(VENV)-$*
	$(PYTHON) -m venv $(VENV)-$*
	$(PYTHON) scripts/versions.py $* > $(VENV)-$*/constraints.txt
	$(VENV)-$*/bin/pip install --quiet --constraint $(VENV)-$*/constraints.txt torch
	$(VENV)-$*/bin/pip install --quiet --constraint $(VENV)-$*/constraints.txt --editable '.[app,corpus,data,eval,dev]'
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/pytest --numprocesses 2 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

screenshots: $(INSTALLED)
	$(BIN)/python scripts/screenshots.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and by exact version: left to the resolver, it is a build for CUDA of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(shell grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[app,corpus,data,eval,dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest site
