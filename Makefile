PYTHON ?= python3
BIN := .venv/bin
MODEL := --model embedded --backend reference --seed 1 --overwrite

.PHONY: install demo quick test fuzz test-slow test-parallel stops faults mutate rehearse-npu rehearse-aiter rehearse-xpu rehearse-rocm lint release clean

install: .venv/installed

demo: .venv/installed
	@mkdir -p demo
	$(BIN)/cosmos3 run "two green squares" $(MODEL) -o demo/squares.png
	$(BIN)/cosmos3 run "a blue ball bounces off the right edge" --sound $(MODEL) -o demo/ball.mp4
	$(BIN)/cosmos3 run "move to the cyan ring" --image docs/images/table.png --task policy --domain pusht --chunk 16 \
		$(MODEL) --plot demo/actions.png -o demo/reach.json

# The gate before every commit, under a minute on two cores once mypy has its cache: lint, types, who imports whom, one
# run of the tests' model and one op against its formula. `make test` is the gate before a merge.
quick: lint
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_run.py::test_text_to_image \
		tests/test_ops.py::test_attention_is_a_softmax_over_all_segments

# Triton interprets kernels or compiles them, and stand-ins are found, for the whole of a process.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile backends/cuda/tests/test_capture.py backends/xpu/tests/test_rehearsal.py backends/rocm/tests
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 backends/triton/tests/interpreted backends/cuda/tests/interpreted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 backends/triton/tests/compiled

# Damaged files for ten minutes, other ones each time; `make test` takes the same few.
fuzz: .venv/installed
	end=$$(($$(date +%s) + 600)); while [ $$(date +%s) -lt $$end ]; do \
		COSMOS3_FUZZ=1 $(BIN)/python -m pytest -q -x tests/test_fuzz.py || exit 1; done

# What takes longer than it is worth on every change: installing from a checkout, whole kits over plugins of contract 1,
# the legs of the embedded model's training, what every quantization format promises of hostile numbers.
test-slow: .venv/installed
	$(BIN)/python -m pytest -q --durations=10 tests/slow

# Every layout of 2 to 8 processes over every kind of request, and whole runs in processes of their own, one of which is
# killed: some minutes. What `make test` has is a diagonal of them.
test-parallel: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 tests/parallel

# 200 runs of the tests' model stopped at random by signals and 100 killed, each gone on with: some minutes.
stops: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/stops.py

# The evaluation of the embedded model with one fault of the pipeline at a time: half an hour on two cores.
faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.embedded.faults

# The conformance kit over a device with one fault at a time, of 468: a quarter of an hour on two idle cores. What `make test` has is one of a kind.
mutate: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py --write

# Ascend's backend against the vendor's real torch_npu, on the host (docs/npu.md): a venv of its own over .venv, and a
# newer wheel to compare schemas with. Some minutes for each chip.
NPU := .venv-npu
CHIPS ?= 910B 910C 950
rehearse-npu: $(NPU)/installed
	for chip in $(CHIPS); do \
		PYTHONPATH=backends/npu OMP_NUM_THREADS=1 REHEARSED_NEWER=$(NPU)/newer $(NPU)/bin/python -m rehearsal $$chip \
			pytest -q -p no:cacheprovider backends/npu/rehearsal/tests || exit 1; done

$(NPU)/installed: .venv/installed backends/npu/rehearsal/constraints.txt
	$(BIN)/python -m venv $(NPU)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > $(NPU)/under
	$(NPU)/bin/python -c 'import shutil, sysconfig; shutil.copy("$(NPU)/under", sysconfig.get_path("purelib") + "/under.pth")'
	$(NPU)/bin/python -m pip install -qq --disable-pip-version-check --no-deps \
		--editable backends/triton --editable backends/npu \
		--requirement backends/npu/rehearsal/constraints.txt
	$(NPU)/bin/python -m pip download -qq --disable-pip-version-check --no-deps --dest $(NPU)/newer torch-npu==2.14.0
	@touch $@

# Intel GPUs on a CPU: the kit over the rows of cosmos3-xpu, whole requests, and quick evaluations of checkpoints that
# AutoRound writes, with auto-round-lib and stand-ins for what only a GPU has. 18 minutes of a processor.
XPU := build/rehearse-xpu
rehearse-xpu: $(XPU)/installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(XPU) $(BIN)/python -m pytest -q -rxX --durations=10 -n 3 --dist loadfile \
		backends/xpu/tests

$(XPU)/installed: .venv/installed backends/xpu/tests/rehearsal/constraints.txt
	rm -rf $(XPU)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(XPU) \
		--requirement backends/xpu/tests/rehearsal/constraints.txt
	@touch $@

# AMD's GPUs without one: our kernels compiled for every architecture, with gates for what the compiler makes of them and
# docs/rocm-kernels.md of it; then the conformance kit's numbers and whole requests in Triton's interpreter, five minutes
# of the processor for the kit on each of ROCM_ARCHS. Half an hour; what was compiled is kept in build/.
ROCM_ARCHS ?= gfx942 gfx1201
rehearse-rocm: .venv/installed
	OMP_NUM_THREADS=1 PYTHONPATH=backends/rocm:backends/triton $(BIN)/python -m rehearsed.compile
	for arch in $(ROCM_ARCHS); do \
		REHEARSED_ARCH=$$arch OMP_NUM_THREADS=1 PYTHONPATH=backends/rocm $(BIN)/python -m rehearsed \
			pytest -q -p no:cacheprovider backends/rocm/rehearsed/tests || exit 1; done

# The conformance kit over AITER's rows of cosmos3-rocm on a CPU, with stand-ins for its functions: some minutes.
rehearse-aiter: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 backends/rocm/aiter_kit -k aiter

# The six distributions, in dist/: built, checked, installed in an empty environment and run. Publishes nothing.
release: .venv/installed
	rm -rf dist
	$(BIN)/python scripts/release.py dist

lint: .venv/installed
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary

clean:
	rm -rf .venv .venv-npu .nox build dist demo .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python compiles what is imported; to compile all 13,000 modules takes pip longer than to unpack them.
# Checked before .venv is made: pip's refusal would come after it and leave a .venv of the wrong Python behind.
.venv/installed: pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer. Name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv. The first time takes some minutes, most of them for torch."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@
