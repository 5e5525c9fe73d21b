/* A small training run in a directory of its own: text, character tokenizer, data, device. For
 * the tests of the trainer and of what lies around it. */
#pragma once

#include "cpu/cpu.h"
#include "model/tokenizer.h"
#include "model/train_state.h"
#include "model/trainer.h"

struct train_fixture {
    char dir[64];       /* of the test: removed at the end */
    char run[96];       /* dir/run: the run's directory, with the tokenizer */
    char text_path[96];
    struct device *device;
    struct tokenizer *tokenizer;
    struct dataset *data;
    struct trainer_options options;
    struct trainer *trainer; /* NULL until begun */
};

/* Sentences that repeat with variations, about n bytes. Settings: 2 layers, width 32, sequences
 * of 16, one thread, 20 steps; change f->options before beginning. Fails the test when anything
 * goes wrong. */
void train_fixture_open(struct train_fixture *f, int64_t n_bytes);
void train_fixture_close(struct train_fixture *f); /* ends the run, if there is one */
/* Opens the data again after options.config changed what it depends on. */
void train_fixture_open_data(struct train_fixture *f);

/* Begins in f->run, or goes on from its newest checkpoint. */
void train_fixture_begin(struct train_fixture *f);
void train_fixture_resume(struct train_fixture *f);
void train_fixture_end(struct train_fixture *f);
/* n steps; fails the test when one does. */
void train_fixture_steps(struct train_fixture *f, int64_t n);
/* To the end. */
enum trainer_end train_fixture_run(struct train_fixture *f);
/* Another directory beside f->run, to be the run's from now on. */
void train_fixture_use_run(struct train_fixture *f, const char *name);

/* The whole file, NUL-terminated; freed by the caller. Path relative to f->dir. */
char *train_fixture_read(const struct train_fixture *f, const char *path, size_t *n);
/* Fails the test unless both files (relative to f->dir) have the same bytes. */
void train_fixture_same(const struct train_fixture *f, const char *a, const char *b);
bool train_fixture_has(const struct train_fixture *f, const char *path);
/* The number after "key": in line `line` (from 0) of the run's metrics; NaN when there is none. */
double train_fixture_metric(const struct train_fixture *f, int64_t line, const char *key);
