/* Keys: see auth.h. */
#include "server/auth.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "base/clock.h"
#include "base/log.h"

enum { DIGEST_SIZE = 32, SHORT_KEY = 16 };

struct auth_key {
    uint8_t digest[DIGEST_SIZE];
    char name[AUTH_NAME_MAX];
    bool is_admin;
    struct key_limits *limits; /* a reference; NULL: none */
};

/* All keys of both files. */
struct keyring {
    struct auth_key *keys; /* [AUTH_MAX_KEYS], n of them used */
    size_t n;
};

struct auth {
    struct auth_options options;
    pthread_rwlock_t lock; /* of `ring`, which only auth_reload writes */
    struct keyring ring;
};

static bool digest_of(const char *key, size_t n, uint8_t out[DIGEST_SIZE])
{
    unsigned size;
    return EVP_Digest(key, n, out, &size, EVP_sha256(), NULL) == 1 && size == DIGEST_SIZE;
}

/* The key by its digest, NULL if there is none. It looks at all of them and at all of their bytes,
 * so that the time tells nothing of how near a guess was, or to which key. */
static struct auth_key *find(const struct keyring *ring, const uint8_t digest[DIGEST_SIZE])
{
    size_t found = ring->n;
    for (size_t i = 0; i < ring->n; i++) {
        size_t equal = CRYPTO_memcmp(ring->keys[i].digest, digest, DIGEST_SIZE) == 0;
        found = equal * i + (1 - equal) * found;
    }
    return found < ring->n ? &ring->keys[found] : NULL;
}

static void keyring_free(struct keyring *ring)
{
    for (size_t i = 0; i < ring->n; i++) key_limits_unref(ring->keys[i].limits);
    free(ring->keys);
    *ring = (struct keyring){0};
}

/* ---- Reading key files ---- */

static bool is_key_byte(char c) { return c > ' ' && c <= '~'; }

bool auth_name_is_good(const char *name, size_t n)
{
    static const char good[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                               "0123456789._@+-";
    if (n == 0 || n >= AUTH_NAME_MAX) return false;
    for (size_t i = 0; i < n; i++)
        if (!name[i] || !strchr(good, name[i])) return false;
    return true;
}

/* One file while it is read. */
struct key_reader {
    const char *path;
    bool is_admin;
    size_t n_keys, line;
    struct keyring *ring;
};

static bool line_error(const struct key_reader *r, struct error *err, const char *why)
{
    return error_set(err, ERR_FORMAT, NULL, "%s line %zu: %s (a line is KEY or KEY NAME)", r->path,
                     r->line, why);
}

/* A key that is in both files is an admin's. */
static bool add_key(struct key_reader *r, const struct auth_key *key, struct error *err)
{
    struct keyring *ring = r->ring;
    struct auth_key *same = find(ring, key->digest);
    if (same && same->is_admin == r->is_admin) return line_error(r, err, "the key is there twice");
    if (same) {
        *same = *key;
        return true;
    }
    if (ring->n == AUTH_MAX_KEYS) return line_error(r, err, "there are more than 4096 keys");
    ring->keys[ring->n++] = *key;
    return true;
}

/* Errors never quote the line: it may be a key. */
static bool read_line(struct key_reader *r, const char *line, size_t n, struct error *err)
{
    struct auth_key key = {.is_admin = r->is_admin};
    while (n > 0 && strchr(" \t\r", line[n - 1]) && line[n - 1]) n--;
    if (n == 0 || line[0] == '#') return true;
    size_t key_size = 0;
    while (key_size < n && is_key_byte(line[key_size])) key_size++;
    size_t at = key_size;
    while (at < n && (line[at] == ' ' || line[at] == '\t')) at++;
    if (key_size == 0 || (key_size < n && at == key_size))
        return line_error(r, err, "a key must be printable ASCII, at the line's beginning");
    if (key_size > AUTH_KEY_MAX) return line_error(r, err, "the key has more than 512 characters");
    if (at < n && !auth_name_is_good(line + at, n - at))
        return line_error(r, err, "a name must be 1 to 63 of A-Z a-z 0-9 . _ @ + -");
    r->n_keys++;
    if (at < n) snprintf(key.name, sizeof key.name, "%.*s", (int)(n - at), line + at);
    else snprintf(key.name, sizeof key.name, "%s-%zu", r->is_admin ? "admin" : "user", r->n_keys);
    if (key_size < SHORT_KEY)
        log_warn("%s line %zu: a key of %zu characters can be guessed; gptd key new makes a better "
                 "one", r->path, r->line, key_size);
    if (!digest_of(line, key_size, key.digest))
        return error_set(err, ERR_MEMORY, NULL, "%s: cannot compute SHA-256", r->path);
    return add_key(r, &key, err);
}

static bool read_lines(struct key_reader *r, const char *text, size_t n, struct error *err)
{
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t len = end ? (size_t)(end - text) - at : n - at;
        r->line++;
        if (!read_line(r, text + at, len, err)) return false;
        at += len + 1;
    }
    return r->n_keys > 0 || error_set(err, ERR_FORMAT, NULL, "%s has no key in it; put there what "
                                      "gptd key new prints", r->path);
}

/* The file's bytes into text[AUTH_FILE_LIMIT + 1]. Not base/file.h's: nothing of them may stay
 * behind in freed memory, and a pipe must not make a reload wait. */
static bool read_bytes(const char *path, int fd, char *text, size_t *n, struct error *err)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) return error_errno(err, "cannot read the keys in %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, NULL, "cannot read keys from %s: it is not a file",
                         path);
    if (st.st_mode & S_IRWXO)
        log_warn("%s holds keys, and every user of this machine may open it: chmod o= %s", path,
                 path);
    for (*n = 0; *n <= AUTH_FILE_LIMIT;) {
        ssize_t got = read(fd, text + *n, AUTH_FILE_LIMIT + 1 - *n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_errno(err, "cannot read the keys in %s", path);
        if (got == 0) return true;
        *n += (size_t)got;
    }
    return error_set(err, ERR_TOO_LARGE, NULL, "%s has more than %d bytes: that is no file of keys",
                     path, AUTH_FILE_LIMIT);
}

static bool read_file(const char *path, bool is_admin, struct keyring *ring, struct error *err)
{
    if (!path) return true;
    struct key_reader reader = {.path = path, .is_admin = is_admin, .ring = ring};
    size_t n = 0;
    char *text = malloc(AUTH_FILE_LIMIT + 1);
    if (!text) return error_set(err, ERR_MEMORY, NULL, "no memory to read %s", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool ok = read_bytes(path, fd, text, &n, err) && read_lines(&reader, text, n, err);
    if (fd >= 0) close(fd);
    OPENSSL_cleanse(text, AUTH_FILE_LIMIT + 1);
    free(text);
    return ok;
}

/* Each user's key gets limits: those it had, so that a reload refills nobody's minute. */
static bool attach_limits(const struct auth *a, struct keyring *ring, struct error *err)
{
    if (!limits_any(&a->options.limits)) return true;
    int64_t now_ns = clock_ns();
    for (size_t i = 0; i < ring->n; i++) {
        struct auth_key *key = &ring->keys[i];
        if (key->is_admin) continue;
        const struct auth_key *old = find(&a->ring, key->digest);
        key->limits = old && old->limits ? key_limits_ref(old->limits)
                                         : key_limits_new(&a->options.limits, now_ns);
        if (!key->limits) return error_set(err, ERR_MEMORY, NULL, "no memory for the keys' limits");
    }
    return true;
}

bool auth_reload(struct auth *a, struct error *err)
{
    struct keyring ring = {.keys = calloc(AUTH_MAX_KEYS, sizeof *ring.keys)};
    if (!ring.keys) return error_set(err, ERR_MEMORY, NULL, "no memory for the keys");
    bool ok = read_file(a->options.user_file, false, &ring, err)
              && read_file(a->options.admin_file, true, &ring, err)
              && attach_limits(a, &ring, err);
    if (ok) {
        struct keyring old = a->ring;
        pthread_rwlock_wrlock(&a->lock);
        a->ring = ring;
        pthread_rwlock_unlock(&a->lock);
        ring = old;
    }
    keyring_free(&ring);
    return ok;
}

bool auth_open(const struct auth_options *o, struct auth **out, struct error *err)
{
    struct auth *a = calloc(1, sizeof *a);
    if (!a) return error_set(err, ERR_MEMORY, NULL, "no memory for the keys");
    a->options = *o;
    pthread_rwlock_init(&a->lock, NULL);
    if (auth_reload(a, err)) {
        *out = a;
        return true;
    }
    auth_close(a);
    return false;
}

void auth_close(struct auth *a)
{
    if (!a) return;
    keyring_free(&a->ring);
    pthread_rwlock_destroy(&a->lock);
    free(a);
}

/* ---- Requests ---- */

bool auth_identify(struct auth *a, const char *key, size_t n, struct auth_caller *out)
{
    uint8_t digest[DIGEST_SIZE];
    if (!digest_of(key, n, digest)) return false;
    *out = (struct auth_caller){0};
    pthread_rwlock_rdlock(&a->lock);
    const struct auth_key *found = find(&a->ring, digest);
    if (found) {
        memcpy(out->name, found->name, sizeof out->name);
        out->is_admin = found->is_admin;
        out->limits = key_limits_ref(found->limits);
        memcpy(&out->cache_salt, digest, sizeof out->cache_salt);
        out->cache_salt |= 1; /* 0 is what requests without keys have */
    }
    pthread_rwlock_unlock(&a->lock);
    return found != NULL;
}

void auth_caller_free(struct auth_caller *c)
{
    key_limits_unref(c->limits);
    c->limits = NULL;
}

/* "Bearer KEY", the scheme in any case; what follows it, else NULL. */
static const char *after_scheme(const char *value)
{
    static const char scheme[] = "Bearer";
    size_t n = sizeof scheme - 1;
    if (strncasecmp(value, scheme, n) != 0 || value[n] != ' ') return NULL;
    return value + n + strspn(value + n, " ");
}

enum auth_presented auth_presented_key(const struct auth_headers *h, const char **key, size_t *n,
                                       struct error *err)
{
    if (h->n_authorization + h->n_api_key == 0) {
        error_set(err, ERR_UNAUTHENTICATED, NULL,
                  "give a key: send the header 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'");
        return AUTH_NO_KEY;
    }
    const char *why = NULL;
    *key = NULL;
    if (h->n_authorization + h->n_api_key > 1)
        why = "give the key once, as Authorization or as X-Api-Key";
    else
        *key = h->n_api_key ? h->api_key : h->authorization ? after_scheme(h->authorization) : NULL;
    if (!why && !*key) why = "the header must be 'Authorization: Bearer KEY'";
    if (!why) {
        *n = strcspn(*key, " \t");
        if (*n == 0 || *n > AUTH_KEY_MAX || (*key)[*n + strspn(*key + *n, " \t")])
            why = "the key must be 1 to 512 characters without spaces";
    }
    if (!why) return AUTH_KEY;
    error_set(err, ERR_UNAUTHENTICATED, NULL, "%s", why);
    return AUTH_BAD_HEADER;
}

/* ---- New keys ---- */

bool auth_new_key(char out[AUTH_NEW_KEY_SIZE], struct error *err)
{
    uint8_t random[DIGEST_SIZE];
    char text[45]; /* 44 characters, the last one is '=' */
    if (RAND_bytes(random, sizeof random) != 1)
        return error_set(err, ERR_IO, NULL, "cannot get random bytes for a key");
    EVP_EncodeBlock((unsigned char *)text, random, sizeof random);
    for (char *c = text; *c; c++) *c = *c == '+' ? '-' : *c == '/' ? '_' : *c;
    snprintf(out, AUTH_NEW_KEY_SIZE, "gptd-%.43s", text);
    OPENSSL_cleanse(random, sizeof random);
    OPENSSL_cleanse(text, sizeof text);
    return true;
}
