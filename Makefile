# gptd: `make` builds build/gptd, `make run` serves the shipped model, `make test` proves it all.
#
# SAN=address (with undefined) or SAN=thread builds a second tree under build-asan/, build-tsan/.

CC      ?= cc
PYTHON  ?= python3
SAN     ?=
BUILD   := build$(if $(SAN),/$(SAN))

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
           -Wno-unused-parameter
# No contraction: a row's result must not depend on which loop the compiler fused. Kernels
# say fma where they mean it.
CFLAGS  := -std=c17 -D_GNU_SOURCE -O2 -g -fno-strict-aliasing -ffp-contract=off -pthread $(WARN) \
           -I. -MMD -MP $(EXTRA_CFLAGS)
LDFLAGS := -pthread $(EXTRA_LDFLAGS)
LIBS    := -lmicrohttpd -lcjson -lpcre2-8 -lcrypto -lm -ldl
ifeq ($(SAN),address)
CFLAGS  += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LDFLAGS += -fsanitize=address,undefined
endif
ifeq ($(SAN),thread)
CFLAGS  += -fsanitize=thread -fno-omit-frame-pointer
LDFLAGS += -fsanitize=thread
endif

FOLDERS := base model cpu api server
SRCS    := $(filter-out server/main.c,$(wildcard $(addsuffix /*.c,$(FOLDERS))))
OBJS    := $(SRCS:%.c=$(BUILD)/%.o)
TESTS   := $(wildcard tests/*/test_*.c)
TEST_BINS := $(TESTS:%.c=$(BUILD)/%)
# Helpers that several tests share: every tests/*/ file that is not itself a test.
TEST_LIB  := $(filter-out $(TESTS) $(wildcard tests/fuzz/*.c),$(wildcard tests/*/*.c))
TEST_OBJS := $(TEST_LIB:%.c=$(BUILD)/%.o)

.PHONY: all
all: $(BUILD)/gptd

$(BUILD)/gptd: $(BUILD)/server/main.o $(OBJS)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

# Instruction sets: a file's name says which it may use; cpu/ picks at run time.
$(BUILD)/cpu/%_avx2.o: CFLAGS += -mavx2 -mfma -mf16c
$(BUILD)/cpu/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(BUILD)/cpu/%_avx512bf16.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma
$(BUILD)/cpu/%.o: CFLAGS += -O3

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_OBJS) $(OBJS)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

.PRECIOUS: $(BUILD)/%.o

.PHONY: clean
clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
