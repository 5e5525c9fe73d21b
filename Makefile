# gptd: `make` builds build/gptd, `make run` serves the shipped model, `make demo` asks it something
# and ends, `make test` proves it all, `make bench` measures it.
#
# SAN=address (with undefined), SAN=thread and SAN=fuzzer (clang) build trees of their own under
# build/address/, build/thread/, build/fuzzer/.

CC      ?= cc
PYTHON  ?= python3
MODEL   ?= models/shakespeare
PORT    ?= 8080
SAN     ?=
BUILD   := build$(if $(SAN),/$(SAN))

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
           -Wno-unused-parameter
# No contraction: a row's result must not depend on which loop the compiler fused. Kernels
# say fma where they mean it.
CFLAGS  := -std=c17 -D_GNU_SOURCE -O2 -g -fno-strict-aliasing -ffp-contract=off -pthread $(WARN) \
           -I. -MMD -MP $(EXTRA_CFLAGS)
LDFLAGS := -pthread $(EXTRA_LDFLAGS)
LIBS    := -lmicrohttpd -lgnutls -lcjson -lpcre2-8 -lunistring -lcrypto -lm -ldl
ifeq ($(SAN),address)
SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
ifeq ($(SAN),thread)
SANFLAGS := -fsanitize=thread -fno-omit-frame-pointer
endif
ifeq ($(SAN),fuzzer)
override CC := clang
SANFLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
endif
# -O1: with checks in every loop the compiler takes minutes to optimize a kernel.
CFLAGS  += $(if $(SAN),-O1) $(SANFLAGS)
LDFLAGS += $(SANFLAGS)

# The CUDA device is built where nvcc is found, with the toolkit in CUDA_HOME; CUDA=0 leaves it
# out, and so do sanitizers. CUDA_ARCHS: GPUs to have machine code for; those of a later minor
# number run it too (86 and 89 that of 80), and the last one's PTX is there for all that come
# after. CUDA 13 has left 61 and 70 behind.
CUDA_HOME  ?= $(or $(patsubst %/bin/nvcc,%,$(shell command -v nvcc)),\
                   $(firstword $(wildcard /usr/local/cuda)))
NVCC       := $(CUDA_HOME)/bin/nvcc
CUDA       ?= $(if $(SAN),0,$(if $(wildcard $(NVCC)),1,0))
# The environment may have a variable of that name too, with another meaning.
ifeq ($(filter 0 1,$(CUDA)),)
$(error CUDA is "$(CUDA)": it must be 0 (no CUDA device) or 1; CUDA_HOME is the toolkit's path)
endif
CUDA_ARCHS ?= $(if $(shell $(NVCC) --list-gpu-arch 2>/dev/null | grep -x compute_61),61 70) 75 80 90
GENCODE    ?= $(foreach sm,$(CUDA_ARCHS),-gencode arch=compute_$(sm),code=sm_$(sm)) \
              $(foreach sm,$(lastword $(CUDA_ARCHS)),-gencode arch=compute_$(sm),code=compute_$(sm))
CUDA_LIBS  := -L$(CUDA_HOME)/lib64 -lcudart_static -lrt
NVCCFLAGS := -std=c++20 -O3 -lineinfo -I. -MMD -MP --threads 2 -Xptxas -warn-spills \
             -Xcompiler "-Wall -fno-exceptions -fno-rtti -fno-threadsafe-statics"
# In what tests build, a kernel whose registers spill is an error. Elsewhere a toolkit that compiles
# otherwise than ours is no reason to build nothing.
NO_SPILLS := -Xptxas -Werror

FOLDERS := base model cpu cuda api server
SRCS    := $(filter-out server/main.c,$(wildcard $(addsuffix /*.c,$(FOLDERS))))
ifeq ($(CUDA),1)
SRCS    := $(filter-out cuda/cuda_none.c,$(SRCS))
KERNELS := $(wildcard cuda/*.cu)
LIBS    += $(CUDA_LIBS)
endif
OBJS    := $(SRCS:%.c=$(BUILD)/%.o) $(KERNELS:%.cu=$(BUILD)/%.cu.o)
TESTS   := $(wildcard tests/*/test_*.c)
TEST_BINS := $(TESTS:%.c=$(BUILD)/%)
# Where threads meet: what SAN=thread is for.
THREADED_TEST_BINS := $(foreach t,model/test_engine model/test_kv_pool model/test_gpt_train \
                      model/test_trainer cpu/test_pool api/ server/,\
                      $(filter $(BUILD)/tests/$(t)%,$(TEST_BINS)))
# The CUDA device's own objects, on an interpreter of their PTX in the place of a GPU (make
# test-cuda); SIM_ARCH: whose code. Those of 80 have machine code as well, for $(SIM)/gptd_gpu,
# which is gptd as machines with a GPU have it.
SIM_ARCH  ?= 80
SIM_CODES := $(if $(SIM_ARCH:80=),compute_$(SIM_ARCH),[compute_80,sm_80])
SIM_CODE  := arch=compute_$(SIM_ARCH),code=$(SIM_CODES)
SIM       := build/ptxsim$(SIM_ARCH:80=)
SIM_CU    := $(wildcard cuda/*.cu tests/ptxsim/*.cu)
SIM_CC    := $(wildcard tests/ptxsim/*.cc)
SIM_TESTS := $(SIM)/test_opcodes $(SIM)/test_ptxsim $(SIM)/test_cuda_ops $(SIM)/test_cuda_model \
             $(SIM)/test_cuda_huge
SIM_KERNELS := $(patsubst %.cu,$(SIM)/%.cu.o,$(wildcard cuda/*.cu))
SIM_OBJS  := $(filter-out %/cublas_load.cu.o,$(SIM_KERNELS)) \
             $(filter-out $(SIM)/tests/ptxsim/test_%,$(SIM_CC:%.cc=$(SIM)/%.o))
HOST_OBJS := $(patsubst %.c,$(BUILD)/%.o,$(filter-out cuda/cuda_none.c,$(SRCS)))
FUZZ_BINS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))
# Helpers that tests share: every tests/*/ file that is not itself a test. A test links those that
# it calls.
TEST_LIB  := $(filter-out $(TESTS) $(wildcard tests/fuzz/*.c tests/faults/*.c),\
                          $(wildcard tests/*/*.c))
TEST_OBJS := $(TEST_LIB:%.c=$(BUILD)/%.o)
# What the black-box tests preload to make the system refuse. Sanitizers have the allocator for
# themselves: there it is not.
INTERPOSER := $(if $(SAN),,$(BUILD)/tests/faults/interpose.so)
LIBRARIES := $(BUILD)/tests/helpers.a $(BUILD)/gptd.a

.PHONY: all tests threaded-tests fuzz-targets sim-tests
all: $(BUILD)/gptd
# The kernels' bench is nobody's dependency otherwise: so it follows the device's interface.
tests: $(TEST_BINS) $(INTERPOSER) $(if $(SAN),,$(BUILD)/bench_kernels)
threaded-tests: $(THREADED_TEST_BINS)
fuzz-targets: $(FUZZ_BINS)
sim-tests: $(SIM_TESTS) $(SIM)/gptd $(SIM)/gptd_gpu

$(BUILD)/gptd: $(BUILD)/server/main.o $(OBJS) $(BUILD)/objects
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBS)

# What the program was last made of, and its kernels for:
# other choices (CUDA=0, CUDA_ARCHS) make it anew.
$(BUILD)/objects: NOW := $(OBJS)
$(BUILD)/gencode: NOW := $(GENCODE)
$(BUILD)/objects $(BUILD)/gencode: FORCE
	@mkdir -p $(@D)
	@echo '$(NOW)' | cmp -s - $@ || echo '$(NOW)' >$@
FORCE:

# Instruction sets: a file's name says which it may use; cpu/ picks at run time. (gpu_check.sh reads
# these lines.)
$(BUILD)/cpu/%_avx2.o: CFLAGS += -mavx2 -mfma -mf16c
$(BUILD)/cpu/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(BUILD)/cpu/%_avx512vnni.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma
$(BUILD)/cpu/%_avx512bf16.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma
$(BUILD)/cpu/%_amx.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma -mf16c
$(BUILD)/cpu/%_amx.o: CFLAGS += -mamx-tile -mamx-bf16 -mamx-int8
# The web page's files as C, for page.c: {"NAME", "\"DIGEST\"",
# (const unsigned char[]){BYTES}, SIZE}.
PAGE := $(sort $(wildcard server/page/*))
$(BUILD)/server/page.o: CFLAGS += -I$(BUILD)
$(BUILD)/server/page.o: $(BUILD)/server/page_files.inc
$(BUILD)/server/page_files.inc: server/page/. $(PAGE)
	@mkdir -p $(@D)
	@for f in $(PAGE); do \
	    printf '{"%s", "\\"%.16s\\"", (const unsigned char[]){\n' "$${f##*/}" "$$(sha256sum <$$f)"; \
	    od -An -v -tu1 $$f | sed 's/[0-9][0-9]*/&,/g'; \
	    printf '}, %d},\n' "$$(wc -c <$$f)"; \
	done >$@.new && mv $@.new $@

# Nobody asks errno about a square root: without it loops with one become vectors.
$(BUILD)/cpu/%.o: CFLAGS += $(if $(SAN),-O1,-O3) -fno-math-errno
# Fuzzers are after what reads files and requests; clang takes minutes to check unrolled kernels in
# every step. What packs a file's blocks is checked.
CPU_PACKING := $(BUILD)/cpu/cpu_matrix.o $(BUILD)/cpu/kquant.o
$(BUILD)/cpu/%.o: CFLAGS += $(if $(filter fuzzer,$(SAN)),\
                                 $(if $(filter $(CPU_PACKING),$@),,-fno-sanitize=all))
# Every weight passes through their loops: of a file, and of a model that begins.
$(BUILD)/model/dtype.o $(BUILD)/model/gpt_params.o: CFLAGS += $(if $(SAN),-O1,-O3) -fno-math-errno

$(BUILD)/%.cu.o: %.cu $(BUILD)/gencode
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(GENCODE) -c -o $@ $<

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

$(BUILD)/gptd.a: $(OBJS) $(BUILD)/objects
$(BUILD)/tests/helpers.a: $(TEST_OBJS)
$(LIBRARIES):
	@rm -f $@
	$(AR) rcs $@ $(filter %.o,$^)

$(SIM)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(NO_SPILLS) -gencode $(SIM_CODE) --no-compress -c -o $@ $<

$(SIM)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O3 -march=native -g -Wall -Wextra -I. -isystem $(CUDA_HOME)/include -MMD -MP \
	    -c -o $@ $<

$(SIM)/test_opcodes: $(SIM)/tests/ptxsim/test_opcodes.o
$(SIM)/test_ptxsim: $(SIM)/tests/ptxsim/test_ptxsim.o $(SIM)/tests/ptxsim/seeded.cu.o
$(SIM)/test_cuda_ops $(SIM)/test_cuda_model $(SIM)/test_cuda_huge: $(SIM)/test_%: \
    $(BUILD)/tests/cuda/test_%.o
# All of gptd on the interpreter, for black-box tests.
$(SIM)/gptd: $(BUILD)/server/main.o
$(SIM_TESTS) $(SIM)/gptd: $(SIM_OBJS) $(HOST_OBJS) $(BUILD)/tests/helpers.a
	$(CXX) $(LDFLAGS) -o $@ $(filter %.o,$^) $(BUILD)/tests/helpers.a \
	    $(filter-out -lcudart_static,$(LIBS)) -lcmocka

$(SIM)/gptd_gpu: $(BUILD)/server/main.o $(SIM_KERNELS) $(HOST_OBJS)
	$(CC) $(LDFLAGS) -o $@ $^ $(filter-out $(CUDA_LIBS),$(LIBS)) $(CUDA_LIBS)

$(BUILD)/bench_kernels: $(patsubst %,$(BUILD)/scripts/bench_%.o,kernels rows quantized) \
                        $(BUILD)/gptd.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/fuzz/%: $(BUILD)/tests/fuzz/%.o $(LIBRARIES)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIBRARIES)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

$(BUILD)/tests/faults/interpose.so: tests/faults/interpose.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fPIC -ftls-model=initial-exec -shared $(LDFLAGS) -o $@ $< -ldl

.PRECIOUS: $(BUILD)/%.o

# For people.
.PHONY: run demo test test-container test-cuda cuda-budgets bench fuzz layers setup setup-test clean
setup:
	@scripts/setup.sh
setup-test:
	@scripts/setup.sh --test

run: setup
	@$(MAKE) --no-print-directory all
	build/gptd serve --model $(MODEL) --port $(PORT) --hint

demo: setup
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh $(MODEL)

test: setup-test
	@scripts/setup.sh --browser
	@$(MAKE) --no-print-directory build/venv/ready
	@scripts/run_tests.sh

# The images, built and run for real; as root, with Debian's tools in place of Docker.
test-container: setup-test
	@scripts/setup.sh --container
	@$(MAKE) --no-print-directory all build/venv/ready
	build/venv/bin/python -m pytest -q -ra tests/container

# The CUDA device without a GPU. Needs nvcc.
test-cuda: setup-test
	@$(MAKE) --no-print-directory sim-tests build/venv/ready
	@for t in $(SIM_TESTS); do echo "== $$t" && $$t || exit 1; done
	GPTD_BINARY=$(SIM)/gptd build/venv/bin/python -m pytest -q tests/cuda
	scripts/gpu_check.sh --simulate

# Kernels' registers, spills, bank conflicts and sectors beside tests/cuda/budgets.txt, or (RENEW=1)
# that file anew. The normal tests check what needs no ptxas.
BUDGET_REPORTS := $(patsubst cuda/%.cu,build/budgets/%.txt,$(wildcard cuda/*.cu))
$(BUDGET_REPORTS): build/budgets/%.txt: cuda/%.cu $(wildcard cuda/*.h cuda/*.cuh)
	@mkdir -p $(@D)
	$(NVCC) $(filter-out -MMD -MP,$(NVCCFLAGS)) $(NO_SPILLS) -Xptxas -v -fatbin -o $@.fatbin \
	    $(foreach sm,75 80 90,-gencode arch=compute_$(sm),code=sm_$(sm)) $< 2>$@.log \
	    || { cat $@.log; exit 1; }
	@mv $@.log $@

cuda-budgets: $(SIM)/test_cuda_ops $(BUDGET_REPORTS)
	@cat $(BUDGET_REPORTS) >build/budgets/all
	PTXAS_REPORT=build/budgets/all $(if $(RENEW),RENEW_BUDGETS=1) $<

bench: setup-test
	@$(MAKE) --no-print-directory all build/venv/ready
	@build/venv/bin/python scripts/bench.py --model $(MODEL) $(BENCH)
	@echo && build/venv/bin/python scripts/bench_open.py --model $(MODEL) $(BENCH_OPEN)
	@echo && build/venv/bin/python scripts/bench_train.py $(BENCH_TRAIN)

FUZZ_SECONDS ?= 600
fuzz: setup-test
	@$(MAKE) --no-print-directory SAN=fuzzer fuzz-targets
	@scripts/fuzz.sh $(FUZZ_SECONDS)

layers:
	@scripts/check_layers.sh

build/venv/ready: tests/requirements.txt
	$(PYTHON) -m venv --clear build/venv
	build/venv/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

clean:
	rm -rf build

# What the scripts ask: `make -s print-TEST_BINS`.
print-%:
	@echo $($*)

-include $(wildcard $(SIM)/*/*.d $(SIM)/tests/*/*.d $(BUILD)/*/*.d $(BUILD)/tests/*/*.d)
