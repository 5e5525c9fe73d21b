/* Tests of base/file.c, in a directory of their own. */
#include <errno.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"

static char dir[] = "/tmp/gptd-test-file-XXXXXX";
static char path[128];

static int set_up(void **state)
{
    if (!mkdtemp(dir)) return 1;
    snprintf(path, sizeof path, "%s/file", dir);
    return 0;
}

static int tear_down(void **state)
{
    unlink(path);
    return rmdir(dir);
}

static void write_file(const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void test_map(void **state)
{
    struct file_map map;
    struct error err;
    write_file("a\0b", 3);
    assert_true(file_map_open(path, &map, &err));
    assert_int_equal(map.size, 3);
    assert_memory_equal(map.data, "a\0b", 3);
    file_map_close(&map);
    assert_null(map.data);
    file_map_close(&map); /* harmless */
}

static void test_an_empty_file_maps_to_nothing(void **state)
{
    struct file_map map;
    struct error err;
    write_file("", 0);
    assert_true(file_map_open(path, &map, &err));
    assert_int_equal(map.size, 0);
    assert_null(map.data);
    file_map_close(&map);
}

static void test_what_is_no_file_is_refused(void **state)
{
    struct file_map map;
    struct buf b;
    struct error err;
    buf_init(&b, 1000);
    assert_false(file_map_open("/no/such/file", &map, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "/no/such/file"));
    assert_false(file_map_open(dir, &map, &err));
    assert_int_equal(err.code, ERR_FORMAT);
    assert_false(file_read("/dev/zero", &b, &err));
    assert_int_equal(err.code, ERR_FORMAT);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(file_read(path, &b, &err)); /* and does not hang */
    assert_int_equal(err.code, ERR_FORMAT);
    unlink(path);
}

static void test_read_appends_within_the_limit(void **state)
{
    struct buf b;
    struct error err;
    write_file("12345", 5);
    buf_init(&b, 8);
    buf_puts(&b, "abc");
    assert_true(file_read(path, &b, &err));
    assert_string_equal(b.data, "abc12345");
    assert_false(file_read(path, &b, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_non_null(strstr(err.text, path));
    buf_free(&b);
}

static void test_a_large_file_is_read_whole(void **state)
{
    struct buf b;
    struct error err;
    size_t n = 300000;
    char *bytes = malloc(n);
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) bytes[i] = (char)(i * 7 + i / 1000);
    write_file(bytes, n);
    buf_init(&b, n);
    assert_true(file_read(path, &b, &err));
    assert_int_equal(b.len, n);
    assert_memory_equal(b.data, bytes, n);
    buf_free(&b);
    free(bytes);
}

/* How many of the pages are in this process's page table: bit 63 of each entry of
 * /proc/self/pagemap. */
static int64_t mapped_pages(const uint8_t *at, int64_t n)
{
    uint64_t entry;
    int64_t present = 0;
    FILE *f = fopen("/proc/self/pagemap", "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)((uintptr_t)at / 4096 * sizeof entry), SEEK_SET), 0);
    for (int64_t i = 0; i < n && fread(&entry, sizeof entry, 1, f) == 1; i++)
        present += entry >> 63;
    fclose(f);
    return present;
}

/* Reading a file through its map does not leave it in the process's memory, and reading it again
 * gives the same bytes. */
/* The file shrinks under the map: its bytes are zeros, and the guard says that they are. */
static void test_a_file_cut_short_under_its_map(void **state)
{
    enum { N = 3 << 16 };
    static char bytes[N];
    struct file_map map;
    struct file_guard guard;
    struct error err;
    memset(bytes, 'x', N);
    write_file(bytes, N);
    assert_true(file_map_open(path, &map, &err));
    file_guard_begin(&guard);
    assert_int_equal(map.data[N - 1], 'x');
    assert_true(file_guard_end(&guard, "it", &err));
    assert_true(file_map_unchanged(&map, path, &err));

    file_guard_begin(&guard);
    assert_int_equal(truncate(path, 1), 0);
    file_map_forget(&map); /* else pages that are in memory already could be read */
    assert_int_equal(map.data[N - 1], 0);
    assert_int_equal(map.data[1 << 16], 0);
    assert_false(file_guard_end(&guard, "it", &err));
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.text, "it was cut short"));
    assert_false(file_map_unchanged(&map, path, &err));
    assert_non_null(strstr(err.text, "was written to while it was being read"));
    file_map_close(&map);

    /* One guard's fault is not the next one's. */
    file_guard_begin(&guard);
    assert_true(file_guard_end(&guard, "it", &err));
}

/* A file that took its name is another: the map's is as it was. */
static void test_a_file_replaced_under_its_map(void **state)
{
    struct file_map map;
    struct error err;
    char other[160];
    write_file("abc", 3);
    assert_true(file_map_open(path, &map, &err));
    snprintf(other, sizeof other, "%s/old", dir);
    assert_int_equal(rename(path, other), 0);
    write_file("defg", 4);
    assert_true(file_map_unchanged(&map, path, &err));
    assert_memory_equal(map.data, "abc", 3);
    file_map_close(&map);
    unlink(other);
}

static void test_forget(void **state)
{
    enum { PAGES = 64, PAGE = 4096 };
    struct file_map map;
    struct error err;
    char *bytes = malloc(PAGES * PAGE);
    assert_non_null(bytes);
    for (size_t i = 0; i < PAGES * PAGE; i++) bytes[i] = (char)(i / PAGE + 1);
    write_file(bytes, PAGES * PAGE);
    assert_true(file_map_open(path, &map, &err));
    assert_memory_equal(map.data, bytes, PAGES * PAGE);
    int64_t before = mapped_pages(map.data, PAGES);
    file_map_forget(&map);
    assert_int_equal(before, PAGES);
    assert_int_equal(mapped_pages(map.data, PAGES), 0);
    assert_memory_equal(map.data, bytes, PAGES * PAGE);
    file_map_close(&map);
    file_map_forget(&map); /* nothing to forget */
    free(bytes);
}

static void test_questions(void **state)
{
    write_file("", 0);
    assert_true(file_exists(path));
    assert_false(file_is_dir(path));
    assert_true(file_exists(dir));
    assert_true(file_is_dir(dir));
    assert_false(file_exists("/no/such/file"));
    assert_false(file_is_dir("/no/such/file"));
}

static void test_join(void **state)
{
    char out[8];
    struct error err;
    assert_true(path_join(out, sizeof out, "abc", "def", &err));
    assert_string_equal(out, "abc/def");
    assert_false(path_join(out, sizeof out, "abc", "defg", &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
}

/* Is the file's one byte to be had, by this name in this folder? */
static enum error_code beneath(const char *root, const char *name)
{
    struct error err = {0};
    size_t size = 0;
    int fd;
    if (!file_open_beneath(root, name, &fd, &size, &err)) return err.code;
    assert_int_equal(size, 1);
    close(fd);
    return ERR_NONE;
}

/* Creating what `name` would be, which must be gone again afterwards. */
static enum error_code creates(const char *root, const char *name)
{
    struct error err = {0};
    char full[300];
    int fd;
    if (!file_create_beneath(root, name, &fd, &err)) return err.code;
    assert_int_equal(write(fd, "y", 1), 1);
    close(fd);
    snprintf(full, sizeof full, "%s/%s", root, name);
    assert_int_equal(unlink(full), 0);
    return ERR_NONE;
}

/* Does `name` in the folder lie at `where`? */
static enum error_code lies(const char *root, const char *name, const char *where)
{
    struct error err = {0};
    char found[300], real[PATH_MAX];
    if (!path_find_beneath(root, name, found, sizeof found, &err)) return err.code;
    assert_non_null(realpath(where, real));
    assert_string_equal(found, real);
    return ERR_NONE;
}

static void files_beneath_a_folder(void)
{
    char sub[128], link[160], absolute[160];
    write_file("x", 1);
    snprintf(sub, sizeof sub, "%s/sub", dir);
    snprintf(link, sizeof link, "%s/link", sub);
    snprintf(absolute, sizeof absolute, "%s/absolute", sub);
    assert_int_equal(mkdir(sub, 0700), 0);
    assert_int_equal(symlink("../file", link), 0);
    assert_int_equal(symlink(path, absolute), 0);
    assert_int_equal(beneath(dir, "file"), ERR_NONE);
    assert_int_equal(beneath(dir, "sub/../file"), ERR_NONE);
    assert_int_equal(beneath(dir, "sub/link"), ERR_NONE); /* it stays inside */
    assert_int_equal(beneath(sub, "link"), ERR_INVALID);
    assert_int_equal(beneath(sub, "absolute"), ERR_INVALID);
    assert_int_equal(beneath(sub, "../file"), ERR_INVALID);
    assert_int_equal(beneath(sub, path), ERR_INVALID);
    assert_int_equal(beneath(sub, "none"), ERR_NOT_FOUND);
    assert_int_equal(beneath(dir, "sub"), ERR_FORMAT);
    assert_int_equal(creates(dir, "new"), ERR_NONE);
    assert_int_equal(creates(dir, "sub/new"), ERR_NONE);
    assert_int_equal(creates(sub, "../new"), ERR_INVALID);
    assert_int_equal(creates(dir, "none/new"), ERR_NOT_FOUND);
    assert_int_equal(creates(dir, "file"), ERR_IO); /* it exists */
    assert_int_equal(creates(sub, "link"), ERR_IO);
    assert_int_equal(lies(dir, "sub", sub), ERR_NONE);
    assert_int_equal(lies(dir, "sub/link", path), ERR_NONE);
    assert_int_equal(lies(sub, "link", path), ERR_INVALID);
    assert_int_equal(lies(sub, "..", dir), ERR_INVALID);
    assert_int_equal(lies(sub, ".", sub), ERR_INVALID);
    assert_int_equal(lies(dir, "none", dir), ERR_NOT_FOUND);
    struct error err;
    char small[4];
    assert_false(path_find_beneath(dir, "sub", small, sizeof small, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    unlink(absolute);
    unlink(link);
    rmdir(sub);
}

static void test_files_beneath_a_folder(void **state) { files_beneath_a_folder(); }

/* The same on a kernel that has no openat2, or under a filter of system calls. */
static void test_files_beneath_a_folder_without_openat2(void **state)
{
    struct sock_filter refuse[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof refuse / sizeof *refuse, refuse};
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
            _exit(77);
        files_beneath_a_folder(); /* a check that fails does not come back here */
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_files_beneath_a_folder),
        cmocka_unit_test(test_files_beneath_a_folder_without_openat2),
        cmocka_unit_test(test_an_empty_file_maps_to_nothing),
        cmocka_unit_test(test_what_is_no_file_is_refused),
        cmocka_unit_test(test_read_appends_within_the_limit),
        cmocka_unit_test(test_a_large_file_is_read_whole),
        cmocka_unit_test(test_a_file_cut_short_under_its_map),
        cmocka_unit_test(test_a_file_replaced_under_its_map),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_questions),
        cmocka_unit_test(test_join),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
