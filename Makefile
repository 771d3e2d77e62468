# The Python that .venv is made with; empty: the first of the usual names that is 3.11 or newer.
PYTHON ?=
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python)
# Always run through this one file and relative paths: the folder may be moved, and its name may hold spaces.
VENV_PYTHON = .venv/bin/python
STAMP = .venv/installed
APP = .venv/app

.PHONY: help setup demo app test clean

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s%s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with the versions in requirements.txt; PYTHON=FILE chooses the Python

demo: $(STAMP) ## train a tiny model with the edge loss on real photographs, on the CPU
	@$(VENV_PYTHON) scripts/demo_photos.py
	@WANDB_MODE=$${WANDB_MODE:-offline} $(VENV_PYTHON) main.py --base configs/demo/edge_cpu.yaml

app: $(APP)/installed ## open a web page that upscales pictures; OPTIONS='--port 8000' passes options on
	@PYTHONPATH=$(APP) $(VENV_PYTHON) scripts/app.py $(OPTIONS)

test: $(STAMP) ## check style and types, then run all tests
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy
	@$(VENV_PYTHON) -m pytest

clean: ## remove .venv and caches; logs/ and data/ stay
	@rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info
	@find . \( -path ./.git -o -path ./data -o -path ./logs \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The dots say that pip, which is silent, is still at it; they end with this shell, however it ends.
$(STAMP): requirements.txt
	@python=; for name in $(CANDIDATES); do \
	  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$$name && break; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python 3.11 or newer under the name' $(CANDIDATES)': make setup PYTHON=/path/to/python3.11' >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$python lacks its venv module: install it (Debian, Ubuntu: the package python3-venv)" >&2; exit 1; \
	fi; \
	$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv || exit; \
	printf 'installing requirements.txt into .venv, some minutes the first time '; \
	while kill -0 $$$$ 2>/dev/null; do printf .; sleep 3; done & \
	$(VENV_PYTHON) -m pip install --quiet --no-input --disable-pip-version-check -r requirements.txt; \
	status=$$?; kill $$!; echo; \
	if [ $$status -ne 0 ]; then echo 'error: pip could not install requirements.txt; make setup tries again' >&2; exit 1; fi; \
	touch $@

# A folder that comes before .venv's own packages and only for the page, which needs an older Pillow.
$(APP)/installed: requirements-app.txt $(STAMP)
	@rm -rf $(APP); echo 'installing requirements-app.txt into $(APP), a minute the first time'
	@$(VENV_PYTHON) -m pip install --quiet --no-input --disable-pip-version-check --no-deps --target $(APP) -r $< \
	  || { echo 'error: pip could not install requirements-app.txt; make app tries again' >&2; exit 1; }
	@touch $@
