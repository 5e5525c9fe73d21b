/* Replaces the allocator of the program that includes it (in one file of it): each call that takes
 * or gives back memory - malloc and its kind, mmap and munmap, by our code or a library's - comes
 * by note_allocation(), which that file defines before. What glibc's malloc maps for itself does
 * not. The sanitizers replace malloc, too: under them COUNTS is 0. */
#pragma once

#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note_allocation(void);

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { COUNTS = 0 };
#else
enum { COUNTS = 1 };

/* glibc's own, under the names it keeps for this. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);
void __libc_free(void *p);

void *malloc(size_t n)
{
    note_allocation();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    note_allocation();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    note_allocation();
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    note_allocation();
    return __libc_memalign(alignment, n);
}

void free(void *p)
{
    note_allocation();
    __libc_free(p);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    note_allocation();
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

int munmap(void *at, size_t n)
{
    note_allocation();
    return (int)syscall(SYS_munmap, at, n);
}
#endif
