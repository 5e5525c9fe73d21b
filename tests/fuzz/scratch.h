/* A folder for fuzzers whose subject reads files. For one translation unit a program. */
#pragma once

#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static char scratch[32]; /* the folder: made by scratch_make, removed at exit */

static int scratch_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void scratch_remove(void) { nftw(scratch, scratch_remove_one, 8, FTW_DEPTH | FTW_PHYS); }

/* In memory where there is such a place: a disk takes milliseconds an input. */
static void scratch_make(void)
{
    strcpy(scratch, "/dev/shm/gptd-fuzz-XXXXXX");
    if (!mkdtemp(scratch)) {
        strcpy(scratch, "/tmp/gptd-fuzz-XXXXXX");
        ASSERT(mkdtemp(scratch));
    }
    ASSERT(atexit(scratch_remove) == 0);
}

static void scratch_write(const char *name, const uint8_t *data, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    FILE *f = fopen(path, "wb");
    ASSERT(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}
