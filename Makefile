# The Python that .venv is made with; empty: the first of the usual names that is 3.11 or newer.
PYTHON ?=
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python)
# Always run through this one file and relative paths: the folder may be moved, and its name may hold spaces.
VENV_PYTHON = .venv/bin/python
STAMP = .venv/installed
APP = .venv/app
# An editable installation names this folder: it is renewed where the folder has been moved since.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
MOVED = moved
endif

.PHONY: help setup demo app test faults coverage lock clean moved

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install this folder into .venv, with the versions in requirements.txt; PYTHON=FILE chooses the Python

demo: $(STAMP) ## fine-tune a small upscaler with the edge loss, on the CPU; ends with a page: before and after
	@$(VENV_PYTHON) scripts/demo_photos.py
	@$(VENV_PYTHON) scripts/demo.py

app: $(APP)/installed ## open a web page that upscales pictures; OPTIONS='--port 8000' passes options on
	@PYTHONPATH=$(APP) $(VENV_PYTHON) scripts/app.py $(OPTIONS)

test: $(STAMP) ## check style and types, then run all tests, two at a time
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV_PYTHON) -m pytest -n 2

coverage: $(STAMP) ## run the tests and list the lines that none of them reaches
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV_PYTHON) -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

# The lock keeps the versions that are in it as long as pyproject.toml allows them: UPGRADE=--upgrade takes the newest.
# torch pins its CUDA libraries itself, and a build for the CPU has none: they stay out.
lock: $(STAMP) ## write requirements.txt from pyproject.toml; UPGRADE=--upgrade takes the newest versions
	@$(VENV_PYTHON) -m uv pip compile pyproject.toml --extra dev --output-file requirements.txt --quiet $(UPGRADE) \
	  --python-version 3.11 --python-platform linux --annotation-style line --custom-compile-command 'make lock'
	@sed -E '/^(nvidia|cuda|triton)/d' requirements.txt > requirements.tmp && mv requirements.tmp requirements.txt

faults: $(STAMP) ## stop trainings at many random moments, and see that nothing is lost; OPTIONS=--kills 5
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive PYTHONPATH=tests:. $(VENV_PYTHON) -m faults $(OPTIONS)

clean: ## remove .venv and caches; logs/ and data/ stay
	@rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .coverage dist
	@find . \( -path ./.git -o -path ./data -o -path ./logs \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The dots say that pip, which is silent, is still at it; they end with this shell, however it ends.
$(STAMP): pyproject.toml requirements.txt $(MOVED)
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
	printf 'installing into .venv, some minutes the first time '; \
	while kill -0 $$$$ 2>/dev/null; do printf .; sleep 3; done & \
	$(VENV_PYTHON) -m pip install --quiet --no-input --disable-pip-version-check -c requirements.txt -e '.[dev]'; \
	status=$$?; kill $$!; echo; \
	if [ $$status -ne 0 ]; then echo 'error: pip could not install everything; make setup tries again' >&2; exit 1; fi; \
	printf '%s\n' "$(CURDIR)" > $@

# A folder that comes before .venv's own packages and only for the page, which needs an older Pillow.
$(APP)/installed: requirements-app.txt $(STAMP)
	@rm -rf $(APP); echo 'installing requirements-app.txt into $(APP), a minute the first time'
	@$(VENV_PYTHON) -m pip install --quiet --no-input --disable-pip-version-check --no-deps --target $(APP) -r $< \
	  || { echo 'error: pip could not install requirements-app.txt; make app tries again' >&2; exit 1; }
	@touch $@
