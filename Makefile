# Two commands matter on a fresh machine with Python 3.11 and make: `make demo` and `make test`.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
FILES = pyproject.toml constraints/base.txt
TEST_PROCESSES ?= $(shell nproc 2>/dev/null || echo 2)
WITH_LIBTPU = PYTHONPATH=$(CURDIR)/.venv/libtpu

.PHONY: demo test test-slow test-peers test-tpu check format clean help fleet

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: .venv/base  ## the whole life of a pair on the CPU: train, prune, distill, palettize, recover, samples, card
	.venv/bin/pomona life tiny

test: .venv/dev  ## the whole test suite, without PyTorch
	.venv/bin/python -m pytest tests -m "not peers and not tpu and not slow" -n $(TEST_PROCESSES) --maxprocesses 8 --dist loadfile

test-slow: .venv/dev  ## the tests that take long by themselves: many processes, kills, every command of the README
	.venv/bin/python -m pytest tests -m slow -n $(TEST_PROCESSES) --maxprocesses 8

test-peers: .venv/peers  ## the comparisons with PyTorch and transformers, live
	.venv/bin/python -m pytest tests -m peers

test-tpu: .venv/dev .venv/libtpu  ## small programs through the real TPU compiler
	$(WITH_LIBTPU) .venv/bin/python -m pytest tests -m tpu

check: .venv/dev  ## style, types, and that imports go down the floors
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/dev  ## rewrite the files in the house style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench-train-cpu: .venv/peers  ## training throughput on the CPU beside PyTorch
	.venv/bin/python bench/train_cpu.py

bench-startup: .venv/base  ## how long a person waits for --help, the first step, the tokenizer, the data
	.venv/bin/python bench/startup.py

bench-train-gpu: .venv/gpu  ## MFU of an AFM-on-device-shaped model on one NVIDIA GPU
	.venv/bin/python bench/train_gpu.py

bench-palettize: .venv/coremltools  ## seconds, memory and error of palettizing a 3 B model beside coremltools
	.venv/bin/python bench/palettize.py

bench-cost-model: .venv/base .venv/libtpu  ## predicted TPU step times beside published ones
	$(WITH_LIBTPU) .venv/bin/python bench/cost_model.py

bench-ablation: .venv/dev  ## pruned, distilled, both, neither: the ordering of the report's Table 6 at small scale
	.venv/bin/python bench/ablation.py

bench-compress: .venv/dev .venv/llama  ## bits per byte at every compressed size, beside llama.cpp's quantizations
	.venv/bin/python bench/compress.py

bench-decode: .venv/peers .venv/llama  ## tokens a second of a 3 B model on this CPU, beside llama.cpp and PyTorch
	.venv/bin/python bench/decode.py

bench-serve: .venv/peers .venv/llama-server  ## many users at once, beside llama.cpp's server and transformers
	.venv/bin/python bench/serve.py

soak: .venv/dev  ## 20,000 requests with disconnects and nonsense among them: nothing is left behind
	POMONA_SOAK=20000 .venv/bin/python -m pytest tests/api/test_faults.py -k two_thousand

bench-fuzz: .venv/base  ## 100,000 damaged device files, opened and computed under the address sanitizer
	.venv/bin/python bench/fuzz.py

bench-private: .venv/dev  ## the private cloud beside a plain server: first token, tokens a second, bundles, tokens signed
	.venv/bin/python bench/private.py

bench-fuzz-private: .venv/dev  ## 100,000 damaged inputs for every parser of the private cloud that reads from the network
	.venv/bin/python bench/fuzz_private.py

bench-neon: .venv/base  ## the NEON kernels under an emulator, bit for bit; the library compiled for ARM and by clang
	$(PIP) ziglang==0.17.1 unicorn==2.1.4
	.venv/bin/python bench/neon.py

bench-kernel-cycles: .venv/base .venv/libtpu  ## busy matrix units in the attention kernel's code
	$(WITH_LIBTPU) .venv/bin/python bench/kernel_cycles.py

fleet: .venv/base .venv/libtpu  ## compile Apple's two runs for their fleets: memory, step time, MFU, days, dollars
	$(WITH_LIBTPU) .venv/bin/python bench/fleet.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/base: .venv/bin/python $(FILES)
	$(PIP) -c constraints/base.txt -e .
	@touch $@

EVERY = -c constraints/base.txt -c constraints/serve.txt -c constraints/private.txt -c constraints/dev.txt

.venv/dev: .venv/base constraints/dev.txt constraints/serve.txt constraints/private.txt
	$(PIP) $(EVERY) -e '.[dev,private]'
	@touch $@

.venv/gpu: .venv/base
	$(PIP) -c constraints/base.txt -e '.[gpu]'
	@touch $@

# In a folder of its own: where JAX sees libtpu, every start on a machine without TPUs looks for them, half a minute long.
.venv/libtpu: .venv/bin/python constraints/tpu.txt
	rm -rf $@
	$(PIP) --no-deps -c constraints/tpu.txt --target $@ libtpu

.venv/peers: .venv/dev constraints/peers.txt constraints/coremltools.txt
	$(PIP) $(EVERY) -c constraints/peers.txt torch==2.13.0 transformers peft
	$(PIP) $(EVERY) -c constraints/peers.txt -c constraints/coremltools.txt coremltools
	-$(PIP) $(EVERY) -c constraints/peers.txt 'mlx[cpu]' mlx-lm  # not for every machine
	@touch $@

.venv/coremltools: .venv/base constraints/coremltools.txt
	$(PIP) -c constraints/base.txt -c constraints/coremltools.txt coremltools
	@touch $@

# Of its own too: its C++ is built here for this machine's processor, which takes 5 to 10 minutes on two cores. Without AMX:
# on a virtual machine that has it, llama.cpp ended in an illegal instruction there.
NO_AMX = $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
.venv/llama: .venv/bin/python constraints/llama.txt
	rm -rf $@
	$(PYTHON) -m venv $@
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'" \
	    CMAKE_BUILD_PARALLEL_LEVEL=2 $@/bin/python -m pip \
	    install --quiet --disable-pip-version-check --no-cache-dir -c constraints/llama.txt --no-binary llama-cpp-python \
	    llama-cpp-python gguf
	@touch $@

# Its server, of the same source: what is built above is only its library.
.venv/llama-server: .venv/bin/python constraints/llama.txt
	rm -rf $@
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/llama.txt scikit-build-core pathspec cmake ninja
	$@/bin/python -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-binary :all: \
	    --no-build-isolation -c constraints/llama.txt --dest $@/source llama-cpp-python
	tar -xzf $@/source/*.tar.gz -C $@/source --strip-components 1
	$@/bin/cmake -S $@/source/vendor/llama.cpp -B $@/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$@/bin/ninja \
	    -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)' > $@/build.log
	$@/bin/cmake --build $@/build --target llama-server -j 2 >> $@/build.log
	cp $@/build/bin/llama-server $@/bin/
	@touch $@

clean:  ## remove the virtual environment
	rm -rf .venv
