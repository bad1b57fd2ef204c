# make quickstart       a small model becomes a larger one, beside the same one from scratch
# make study TEXT=DIR   base, ablations, chains and checks on a folder of your text, and their page; goes on where it stopped
# make gpu [TEXT=DIR] [OUT=DIR]   what only a GPU can show, in nine minutes: speed, tests, a small study; fetches nothing
# make test             the tests
# make docs             docs/ as a site: site/index.html; strict, a link that leads nowhere ends it
# make check            what must hold before a change lands: ruff, pyright and the tests
# make drill            the guards at length: kills, signals, full disks, damage; half an hour at most
# make fuzz             damaged and made-up files for ten minutes
# make lint             what ruff says
# make types            what pyright says
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.installed-dev
DOCUMENTED := $(VENV)/.installed-docs
RUNS := out/quickstart

# litgpt itself calls functions that its jsonargparse calls deprecated.
export JSONARGPARSE_DEPRECATION_WARNINGS := off

.PHONY: install quickstart study text-given gpu check lint types test docs drill fuzz clean
install: $(INSTALLED)

# mup and litdata pull in torchvision, which nothing here uses and which breaks litgpt where it does not match torch.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[study]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $@

$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $@

$(DOCUMENTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart.yaml
	$(BIN)/litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart-compare.yaml
	$(BIN)/litgpt warmstart --config configs/warmstart/quickstart.yaml
	$(BIN)/litgpt warmstart_report $(RUNS)/scratch $(RUNS)/warmstart --out_dir $(RUNS)/report --picture $(RUNS)/curves.png
	$(BIN)/litgpt generate $(RUNS)/warmstart/final --prompt "def __init__(self" --max_new_tokens 40 --temperature 0.6

# Some hours on two cores. Prepared text, finished runs and checkpoints are taken as they are.
STUDY := configs/study/cpu
study: text-given $(INSTALLED)
	$(BIN)/litgpt warmstart_prepare_data --text_dir "$$TEXT" --files '*.txt' --piece_bytes 512 \
	  --tokenizer_vocab_size 512 --data_path data/study/text
	$(BIN)/litgpt warmstart_grid_search --config $(STUDY)/1-grid.yaml
	for name in 2-48-96 3-48-192 4-48-96-heads-16; do \
	  $(BIN)/litgpt warmstart_ablations --config $(STUDY)/$$name.yaml || exit; done
	for seed in 42 43 44; do \
	  $(BIN)/litgpt warmstart_successive --config $(STUDY)/5-chain.yaml \
	    --seed $$seed --out_dir out/study/chains/48-96-192-seed-$$seed && \
	  $(BIN)/litgpt warmstart_successive --config $(STUDY)/6-direct.yaml \
	    --seed $$seed --out_dir out/study/chains/48-192-seed-$$seed || exit; done
	$(BIN)/litgpt warmstart_coord_check --config $(STUDY)/7-coord-check.yaml
	$(BIN)/litgpt warmstart_report $(addprefix out/study/,grid ablations chains coord_check) --out_dir out/study/report

text-given:
	@test -d "$$TEXT" || { echo "make study: give a folder of .txt files: make study TEXT=DIR"; exit 2; }

# With the Python of .venv where that is, else PYTHON, which has the packages: nothing is installed.
gpu:
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
	exec $$python benchmarks/gpu.py $(if $(TEXT),--text "$$TEXT") $(if $(OUT),--out "$$OUT")

check: lint types test

lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# It asks the registry for a newer version of itself otherwise.
types: export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
types: $(DEVELOPED)
	$(BIN)/pyright --pythonpath $(BIN)/python

# Two processes of one thread each, which share what takes long to make; one that has no tests left takes the other's.
WORKERS ?= 2
test: $(DEVELOPED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

docs: $(DOCUMENTED)
	$(BIN)/mkdocs build --strict

drill: $(DEVELOPED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/guards tests/run/test_team.py tests/run/test_sharding.py tests/study/test_runner.py -m "drill or not drill" -n $(WORKERS) -rA

fuzz: $(DEVELOPED)
	$(BIN)/python -m tests.guards.fuzz --seconds 600

clean:
	rm -rf $(VENV) out data dist build site .pytest_cache .hypothesis
