# make demo | test | lint | check | dist | docs | mutants | chaos | bench | deck | clean; make test MARK= runs the slow tests too; make mutants MODULE=data.sampler NUMBER=40 SEED=0 changes a module, tests/mutants.py; make bench IMAGES=DIR, train.npz in DIR, the palette too. Each makes .venv when it is missing and installs what it needs, by uv if it is there and by pip otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= test
MARK ?= not slow
DEMO := runs/digits
RECIPE := configs/digits.py
MINUTES ?= 20
MODULE ?= data.sampler
NUMBER ?= 40
SEED ?= 0

BENCHES := train sample encode probe features data scaling

.PHONY: demo test lint check dist docs mutants chaos bench deck clean

demo: $(VENV)/.installed
	@echo "== 1/7 palette: k-means on the colours"
	$(BIN)/python -m igpt_jax.quantize --config=$(RECIPE) --workdir=$(DEMO)
	@echo "== 2/7 pretraining on next-pixel prediction"
	$(BIN)/python -m igpt_jax.train --config=$(RECIPE) --workdir=$(DEMO)
	@echo "== 3/7 pictures: completions and unconditional samples"
	$(BIN)/python -m igpt_jax.sample --checkpoint=$(DEMO) --out=$(DEMO)/completions.png --count=10
	$(BIN)/python -m igpt_jax.sample --checkpoint=$(DEMO) --out=$(DEMO)/samples.png --unconditional=64
	@echo "== 4/7 features of every layer"
	$(BIN)/python -m igpt_jax.features --checkpoint=$(DEMO) --out=$(DEMO)/features
	@echo "== 5/7 linear probes of every layer"
	$(BIN)/python -m igpt_jax.probe --features=$(DEMO)/features --out=$(DEMO)
	@echo "== 6/7 colour photographs, completed by the model in the package"
	$(BIN)/python -m igpt_jax.sample --checkpoint=cifar10-16 --photographs --out=$(DEMO)/colours.png
	@echo "== 7/7 summary"
	$(BIN)/python -m experiments.report.summary --workdir=$(DEMO)
	$(BIN)/python -m igpt_jax.report $(DEMO)

test: lint
	$(BIN)/python -m pytest -m "$(MARK)"

lint: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/mypy

check: test

dist: $(VENV)/.installed-$(EXTRAS)
	rm -rf build dist
	$(BIN)/python -m build

docs:
	$(MAKE) $(VENV)/.installed-docs EXTRAS=docs
	@echo 'building the pages: about three minutes'
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html: $$(find docs/_build/html -name '*.html' | wc -l) pages"

mutants:
	$(MAKE) $(VENV)/.installed-mutants EXTRAS=mutants
	$(BIN)/python -m tests.mutants --module=$(MODULE) --number=$(NUMBER) --seed=$(SEED) $(if $(ONLY),--only=$(ONLY)) $(if $(TESTS),--tests="$(TESTS)")

chaos: $(VENV)/.installed
	$(BIN)/python -m experiments.scale.chaos --minutes=$(MINUTES)

bench:
	$(MAKE) $(VENV)/.installed-bench EXTRAS=bench
	for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m experiments.bench.$$name || exit; done
	$(if $(IMAGES),$(BIN)/python -m experiments.bench.palette --images=$(IMAGES))

deck: $(VENV)/.installed experiments/deck/node_modules/.package-lock.json
	$(BIN)/python -m experiments.deck

experiments/deck/node_modules/.package-lock.json: experiments/deck/package-lock.json
	@command -v npm >/dev/null || { echo "error: make deck needs npm, of Node.js 18 or newer: apt-get install npm"; exit 1; }
	cd $(@D)/.. && npm ci

$(VENV)/.installed: setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh .ci/install $(VENV) .
	touch $@

$(VENV)/.installed-$(EXTRAS): setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh .ci/install $(VENV) ".[$(EXTRAS)]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs build dist docs/_build *.egg-info experiments/deck/node_modules
