# medseg_nb: `make help` lists what there is

PYTHON ?= python3
BIN    := .venv/bin
INSTALL = $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e
NB     ?=
# Threads that wait must not spin (see medseg_nb/__init__.py)
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs store sync constraints clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.lab  ## Install, then train a U-Net on real chest films and look at it (runs/first_look)
	$(BIN)/python tools/lab.py nbs/13_labs/01_first_look.ipynb runs/first_look

# Labs run in tests/test_labs.py, each into a folder of its own, so that the results of a demo stay what they are
test: .venv/.dev  ## Every check: style, notebooks, contracts, oracles, labs, the browser
	$(BIN)/ruff check
	MEDSEG_PROFILE=tiny OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --skip-folder-re '^[_.]|13_labs'
	MEDSEG_PROFILE=tiny OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

lab: .venv/.lab  ## JupyterLab on this machine, opened in nbs/
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: .venv/.dev  ## The site, from the notebooks and their stored pictures (site/index.html)
	$(BIN)/python tools/navigation.py
	$(BIN)/python tools/readme.py
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs nbs site

store: .venv/.dev  ## Run notebooks and keep their outputs: all, or NB=nbs/06_cnn/04_unet.ipynb
	$(BIN)/python tools/store.py $(NB)

sync: .venv/.dev  ## Export the notebooks to medseg_nb/ and clean them
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

constraints: .venv/.dev  ## Solve constraints.txt anew after a change of settings.ini; what fits is kept
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --all-extras --no-annotate --no-header -o constraints.txt setup.py

clean:  ## Remove what can be made again
	rm -rf .venv build dist site jupyter_execute runs *.egg-info

# The environment: uv where it can reach the user's registry, pip otherwise
.venv/.uv: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt uv
	@touch $@

.venv/.lab: .venv/.uv settings.ini setup.py pyproject.toml
	$(INSTALL) '.[lab]' || $(BIN)/pip install -q -c constraints.txt -e '.[lab]'
	@touch $@

.venv/.dev: .venv/.lab
	$(INSTALL) '.[dicom,lab,docs,test,dev]' || $(BIN)/pip install -q -c constraints.txt -e '.[dicom,lab,docs,test,dev]'
	@touch $@
