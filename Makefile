PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: app results results-full test lab base clean

# Quick: one seed, 200 problems, pages in results/quick/.
results: $(READY)
	$(BIN)/python -m lab results

# The committed results: three seeds, 500 problems, pages in results/.
results-full: $(READY)
	$(BIN)/python -m lab results --full

test: $(READY)
	$(BIN)/python -m pytest

# The app, in a browser on this machine.
app: $(READY)
	$(BIN)/python app.py

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

# Trains the embedded base model anew.
base: $(READY)
	$(BIN)/python -m lab.world.recipe

clean:
	rm -rf .venv artifacts results/quick

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $(READY)
