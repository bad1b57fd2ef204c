# make quickstart   a small model becomes a larger one, beside the same one from scratch
# make test         the tests
# make lint         what ruff says
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS := out/quickstart

# litgpt itself calls functions that its jsonargparse calls deprecated.
export JSONARGPARSE_DEPRECATION_WARNINGS := off

.PHONY: install quickstart test lint clean
install: $(INSTALLED)

# mup and litdata pull in torchvision, which nothing here uses and which breaks litgpt where it does not match torch.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart.yaml
	$(BIN)/litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart-compare.yaml
	$(BIN)/litgpt warmstart --config configs/warmstart/quickstart.yaml
	$(BIN)/python -m litgpt_warmstart.report.comparison $(RUNS)/scratch $(RUNS)/warmstart
	$(BIN)/litgpt generate $(RUNS)/warmstart/final --prompt "def __init__(self" --max_new_tokens 40 --temperature 0.6

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/python -m pip install --quiet ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) out data dist build .pytest_cache .hypothesis
