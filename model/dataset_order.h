/* Shuffling without memory: a permutation of 0..n-1 for every (seed, epoch), computed one element
 * at a time. So a run that resumes at step s knows what step s sees without replaying. */
#pragma once

#include <stdint.h>

/* Where element i of 0..n-1 goes: distinct for distinct i, uniform to the eye, the same on every
 * machine. 0 <= i < n <= 2^62. */
int64_t dataset_order(uint64_t seed, int64_t epoch, int64_t n, int64_t i);
/* A number in 0..n-1 that belongs to (seed, epoch), n > 0. */
int64_t dataset_phase(uint64_t seed, int64_t epoch, int64_t n);
