/* Keys and whose they are. Key files have one key a line, then, if wanted, a name for it; blank
 * lines and lines that begin with # say nothing:
 *
 *     # the team
 *     gptd-mYxJ5tC... alice
 *     gptd-Zk81_vQ...
 *
 * Only the keys' SHA-256 stay in memory; what a request presents is compared with all of them in
 * constant time. auth_reload reads the files again: all or nothing, and requests under way keep
 * what auth_identify gave them. Any thread; one auth_reload
 * at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "server/limits.h"

enum {
    AUTH_MAX_KEYS = 4096,
    AUTH_KEY_MAX = 512,          /* bytes of one key */
    AUTH_NAME_MAX = 64,          /* with the NUL */
    AUTH_FILE_LIMIT = 1 << 20,
};

struct auth_options {
    const char *user_file, *admin_file; /* NULL: none; one of them at least */
    struct limits_options limits;       /* of each user's key; admins' keys have none */
};

struct auth;

bool auth_open(const struct auth_options *o, struct auth **out, struct error *err) MUST_CHECK;
void auth_close(struct auth *a); /* NULL-safe */
/* A file that cannot be read, or says something else, leaves the old keys in place. */
bool auth_reload(struct auth *a, struct error *err) MUST_CHECK;

/* Whom a request comes from. */
struct auth_caller {
    char name[AUTH_NAME_MAX];  /* for the log; without one of its own, "user-3": by its place */
    bool is_admin;
    uint64_t cache_salt;       /* differs from key to key, never 0 */
    struct key_limits *limits; /* a reference of the caller's; NULL: no limits */
};
/* False: no such key. */
bool auth_identify(struct auth *a, const char *key, size_t n, struct auth_caller *out) MUST_CHECK;
void auth_caller_free(struct auth_caller *c); /* NULL-safe within */

/* What a request's headers present. Counted, since a second one of a kind must not be overlooked:
 * a proxy in front may have looked at the other. */
struct auth_headers {
    const char *authorization, *api_key; /* the last of each */
    int n_authorization, n_api_key;
};
enum auth_presented { AUTH_KEY, AUTH_NO_KEY, AUTH_BAD_HEADER };
/* The key among them, borrowed: `Authorization: Bearer KEY` or `X-Api-Key: KEY`, once. */
enum auth_presented auth_presented_key(const struct auth_headers *h, const char **key, size_t *n,
                                       struct error *err);

/* "gptd-" and 43 characters of base64url: 256 random bits. */
enum { AUTH_NEW_KEY_SIZE = 5 + 43 + 1 };
bool auth_new_key(char out[AUTH_NEW_KEY_SIZE], struct error *err) MUST_CHECK;
/* Is it 1 to 63 of A-Z a-z 0-9 . _ @ + -? */
bool auth_name_is_good(const char *name, size_t n);
