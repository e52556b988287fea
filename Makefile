# What CI runs, runnable by hand. The virtual environment is made on first need and kept up to date.
#
# Targets that verify (demo, bench, budget, bytes, chaos, commission, fuzz, ims, quality, results, soak, sound, what-if) end their stdout with one line of JSON; all else goes to stderr.
# DATA=DIR on the command line names the folder of public data (default ../shared/data); make hands it on
# in the environment by itself.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

# The bundles that are committed. One thread: the number of threads changes the last digits of a training.
BUNDLES := bearing-lstm-ae generic-vibration demo-lstm-ae demo-deep-svdd demo-vae demo-svdd-vae fan-wgan-gp sound-mobilenet-v2 sound-weak-ae

.DEFAULT_GOAL := help
.PHONY: help demo test check bench budget bytes chaos commission fuzz ims models quality results soak sound what-if

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

demo: $(VENV)/.installed-demo  ## a broker, a simulated machine, the agent: from start to an alarm in a minute
	@$(BIN)/edge-agent demo

test: $(VENV)/.installed-all  ## all tests but the long trainings, as many at a time as there are cores, up to four
	@$(BIN)/python -m pytest -m "not heavy" -n auto --maxprocesses 4 --dist loadscope

check: $(VENV)/.installed-all  ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.installed-all  ## speed and memory, beside the usual libraries in the same run
	@$(BIN)/python -m benchmarks

budget: $(VENV)/.installed-all  ## does a promised number of false alarms hold? 18 processes, 20 records each
	@$(BIN)/python -m benchmarks.budget --write

commission: $(VENV)/.installed-all  ## commissioning on machines drawn at run time, then a fault; and what is refused
	@$(BIN)/python -m benchmarks.commission --write

quality: $(VENV)/.installed-all  ## faults of sensors and lines in real recordings: each named, none a machine alarm (needs DATA)
	@$(BIN)/python -m benchmarks.quality --write

chaos: $(VENV)/.installed-all  ## 20 minutes of kills and cuts; no alarm lost, none invented (MINUTES, KILLS, CUTS, SEED)
	@$(BIN)/python -m benchmarks.chaos --write

bytes: $(VENV)/.installed-all  ## bytes written to the disk for a window, by strace
	@$(BIN)/python -m benchmarks.bytes_written --write

fuzz: $(VENV)/.installed-all  ## 1.3 million mutated messages, configurations and manifests (SEED=N repeats a run)
	@$(BIN)/python -m benchmarks.fuzz

ims: $(VENV)/.installed-all  ## NASA IMS and simulated machines, through broker and agent (needs DATA)
	@$(BIN)/python -m benchmarks.ims

soak: $(VENV)/.installed-all  ## a day of 50 sensors through mosquitto: does anything of the agent grow? (HOURS=N for less)
	@$(BIN)/python -m benchmarks.soak

sound: $(VENV)/.installed-all  ## weak supervision and machine ids on sound (needs DATA)
	@$(BIN)/python -m benchmarks.sound

results: $(VENV)/.installed-all  ## every method on held-out machines, into docs/results.md (needs DATA; FULL=1 for more)
	@$(BIN)/python -m benchmarks.results --write

what-if: $(VENV)/.installed-all  ## a month of windows replayed under other alarm settings: seconds, and equal to the engine
	@$(BIN)/python -m benchmarks.what_if

models: $(VENV)/.installed-all  ## train every bundle under models/ anew from its recipe (needs DATA)
	@set -e; export OMP_NUM_THREADS=1; for name in $(BUNDLES); do \
	  echo "== $$name" >&2; $(BIN)/edge-trainer fit trainer/recipes/$$name.yaml --out models/$$name; done

# Packages. RELEASES="12 13" ARCHES="amd64 arm64" say which; DEB_CACHE=DIR where downloads are kept (~/.cache/edge-agent-debs).
.PHONY: arm64 boot-test deb deb-test install-test oldest
RELEASES ?= 12 13
ARCHES   ?= amd64 arm64

deb:  ## a .deb for each Debian release and architecture, into out/deb (root, debootstrap; arm64: qemu-user-static)
	@$(PYTHON) -m deploy.deb.build --releases "$(RELEASES)" --arches "$(ARCHES)"

deb-test: $(VENV)/.installed-all  ## install, run, upgrade, remove and purge these in fresh Debian systems
	@$(BIN)/python -m benchmarks.deb --write --releases "$(RELEASES)" --arches "$(ARCHES)"

boot-test: $(VENV)/.installed-all  ## these in a virtual machine whose systemd starts the service: watchdog, upgrade, the plug pulled (root, qemu-system-x86)
	@$(BIN)/python -m benchmarks.boot --write --releases "$(RELEASES)"

install-test: $(VENV)/.installed-all  ## the same with deploy/install.sh
	@$(BIN)/python -m benchmarks.deb --script --releases "$(RELEASES)" --arches amd64

arm64: $(VENV)/.installed-all  ## core tests, golden windows and a live run on aarch64 in emulation, scores beside this machine's (root)
	@$(BIN)/python -m benchmarks.elsewhere arm64 --write

oldest: $(VENV)/.installed-all  ## the same under the lowest Python that setup.cfg names
	@$(BIN)/python -m benchmarks.elsewhere oldest --write

# The demo needs no TensorFlow: it installs what a device has, and the broker written in Python.
$(VENV)/.installed-demo: setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing the agent into $(VENV) ..." >&2
	@$(PIP) install -e '.[demo]' >&2
	@touch $@

$(VENV)/.installed-all: setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing agent, trainer and test tools into $(VENV) (some minutes the first time) ..." >&2
	@$(PIP) install -e '.[demo,trainer,dev]' >&2
	@touch $@ $(VENV)/.installed-demo

$(BIN)/python:
	@PYTHON="$(PYTHON)" .ci/venv "$(VENV)" >&2
