/* TLS through GnuTLS: see tls.h. */
#include "server/tls.h"

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "base/log.h"
#include "server/connection.h"

enum { PEM_LIMIT = 1 << 20, MAX_CHAIN = 16, KEY_ID_BYTES = 64 };

struct pair {
    gnutls_x509_crt_t *chain; /* its own first, then who signed it */
    unsigned n_chain;
    gnutls_x509_privkey_t key;
};

struct tls {
    const char *cert_file, *key_file;
    pthread_mutex_t mutex; /* of `pair` */
    struct pair pair;
};

/* ---- Reading a pair ---- */

static void free_pair(struct pair *p)
{
    for (unsigned i = 0; i < p->n_chain; i++) gnutls_x509_crt_deinit(p->chain[i]);
    gnutls_free(p->chain);
    if (p->key) gnutls_x509_privkey_deinit(p->key);
    *p = (struct pair){0};
}

static void forget(struct buf *b)
{
    if (b->data) explicit_bzero(b->data, b->len);
    buf_free(b);
}

static gnutls_datum_t datum(const struct buf *b)
{
    return (gnutls_datum_t){(unsigned char *)b->data, (unsigned)b->len};
}

static bool read_chain(const char *path, struct pair *p, struct error *err)
{
    struct buf pem;
    buf_init(&pem, PEM_LIMIT);
    if (!file_read(path, &pem, err)) return false;
    gnutls_datum_t d = datum(&pem);
    int failed = pem.len == 0 ? GNUTLS_E_NO_CERTIFICATE_FOUND
                              : gnutls_x509_crt_list_import2(&p->chain, &p->n_chain, &d,
                                                             GNUTLS_X509_FMT_PEM,
                                                             GNUTLS_X509_CRT_LIST_FAIL_IF_UNSORTED);
    buf_free(&pem);
    if (failed < 0)
        return error_set(err, ERR_FORMAT, "tls-cert", "--tls-cert %s must be the server's "
                         "certificate in PEM, then those that signed it, in order: %s", path,
                         gnutls_strerror(failed));
    if (p->n_chain > MAX_CHAIN)
        return error_set(err, ERR_TOO_LARGE, "tls-cert", "--tls-cert %s: %u certificates; a chain "
                         "has at most %d", path, p->n_chain, MAX_CHAIN);
    return true;
}

static bool read_key(const char *path, struct pair *p, struct error *err)
{
    struct buf pem;
    buf_init(&pem, PEM_LIMIT);
    if (!file_read(path, &pem, err)) return false;
    gnutls_datum_t d = datum(&pem);
    int failed = gnutls_x509_privkey_init(&p->key);
    if (failed >= 0)
        failed = pem.len == 0 ? GNUTLS_E_BASE64_DECODING_ERROR
                              : gnutls_x509_privkey_import2(p->key, &d, GNUTLS_X509_FMT_PEM, NULL,
                                                            0);
    forget(&pem);
    if (failed >= 0) return true;
    return error_set(err, ERR_FORMAT, "tls-key", "--tls-key %s must be a private key in "
                     "PEM, without a password: %s", path, gnutls_strerror(failed));
}

static bool belong_together(const struct pair *p)
{
    unsigned char of_cert[KEY_ID_BYTES], of_key[KEY_ID_BYTES];
    size_t n = sizeof of_cert, m = sizeof of_key;
    return gnutls_x509_crt_get_key_id(p->chain[0], GNUTLS_KEYID_USE_SHA256, of_cert, &n) >= 0
           && gnutls_x509_privkey_get_key_id(p->key, GNUTLS_KEYID_USE_SHA256, of_key, &m) >= 0
           && n == m && memcmp(of_cert, of_key, n) == 0;
}

/* What works, and is still worth a word. */
static void warn_about(const struct tls *t, const struct pair *p)
{
    struct stat st;
    if (stat(t->key_file, &st) == 0 && (st.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)))
        log_warn("--tls-key %s: other users can %s it (mode %03o); chmod 600 keeps it yours",
                 t->key_file, st.st_mode & S_IROTH ? "read" : "change", st.st_mode & 0777);
    time_t end = gnutls_x509_crt_get_expiration_time(p->chain[0]);
    if (end < time(NULL)) log_warn("--tls-cert %s: has expired", t->cert_file);
}

static bool read_pair(const struct tls *t, struct pair *out, struct error *err)
{
    struct pair p = {0};
    if (!read_chain(t->cert_file, &p, err) || !read_key(t->key_file, &p, err)) goto fail;
    if (!belong_together(&p)) {
        error_set(err, ERR_INVALID, "tls-key", "--tls-key %s is not the key of --tls-cert %s "
                  "(whose first certificate must be the server's own)", t->key_file, t->cert_file);
        goto fail;
    }
    warn_about(t, &p);
    *out = p;
    return true;
fail:
    free_pair(&p);
    return false;
}

/* ---- Handshakes ---- */

static gnutls_pcert_st *copy_chain(const struct pair *p)
{
    gnutls_pcert_st *copy = gnutls_calloc(p->n_chain, sizeof *copy);
    for (unsigned i = 0; copy && i < p->n_chain; i++) {
        if (gnutls_pcert_import_x509(&copy[i], p->chain[i], 0) >= 0) continue;
        while (i > 0) gnutls_pcert_deinit(&copy[--i]);
        gnutls_free(copy);
        return NULL;
    }
    return copy;
}

static gnutls_privkey_t copy_key(const struct pair *p)
{
    gnutls_privkey_t copy;
    if (gnutls_privkey_init(&copy) < 0) return NULL;
    if (gnutls_privkey_import_x509(copy, p->key, GNUTLS_PRIVKEY_IMPORT_COPY) >= 0) return copy;
    gnutls_privkey_deinit(copy);
    return NULL;
}

/* gnutls_certificate_retrieve_function3. libmicrohttpd makes its connection the session's
 * pointer. */
static int retrieve(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
                    gnutls_pcert_st **chain, unsigned *n_chain, gnutls_ocsp_data_st **ocsp,
                    unsigned *n_ocsp, gnutls_privkey_t *key, unsigned *flags)
{
    struct tls *t = connection_ctx(connection_of(gnutls_session_get_ptr(session)));
    if (!t) return -1;
    pthread_mutex_lock(&t->mutex);
    *n_chain = t->pair.n_chain;
    *chain = copy_chain(&t->pair);
    *key = *chain ? copy_key(&t->pair) : NULL;
    pthread_mutex_unlock(&t->mutex);
    *ocsp = NULL;
    *n_ocsp = 0;
    *flags = GNUTLS_CERT_RETR_DEINIT_ALL; /* they are GnuTLS's now */
    if (*key) return 0;
    for (unsigned i = 0; *chain && i < *n_chain; i++) gnutls_pcert_deinit(&(*chain)[i]);
    gnutls_free(*chain);
    return -1;
}

void tls_options(struct MHD_OptionItem options[N_TLS_OPTIONS])
{
    static char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE";
    options[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, priorities};
    options[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_CERT_CALLBACK2, 0, (void *)retrieve};
}

/* ---- Open, reload, close ---- */

bool tls_open(const char *cert_file, const char *key_file, struct tls **out, struct error *err)
{
    if (MHD_is_feature_supported(MHD_FEATURE_HTTPS_CERT_CALLBACK2) != MHD_YES)
        return error_set(err, ERR_UNSUPPORTED, "tls-cert", "this libmicrohttpd (%s) was built "
                         "without TLS; serve plain HTTP behind a proxy", MHD_get_version());
    struct tls *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, ERR_MEMORY, NULL, "no memory for TLS");
    t->cert_file = cert_file;
    t->key_file = key_file;
    if (!read_pair(t, &t->pair, err)) {
        free(t);
        return false;
    }
    pthread_mutex_init(&t->mutex, NULL);
    *out = t;
    return true;
}

bool tls_reload(struct tls *t, struct error *err)
{
    struct pair fresh, old;
    if (!read_pair(t, &fresh, err)) return false;
    pthread_mutex_lock(&t->mutex);
    old = t->pair;
    t->pair = fresh;
    pthread_mutex_unlock(&t->mutex);
    free_pair(&old);
    return true;
}

void tls_close(struct tls *t)
{
    if (!t) return;
    free_pair(&t->pair);
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

/* ---- The client's side ---- */

struct tls_client {
    gnutls_session_t session;
    gnutls_certificate_credentials_t credentials;
};

bool tls_client_open(int fd, struct tls_client **out, struct error *err)
{
    struct tls_client *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, ERR_MEMORY, NULL, "no memory for TLS");
    int failed = gnutls_init(&c->session, GNUTLS_CLIENT);
    if (failed >= 0) failed = gnutls_certificate_allocate_credentials(&c->credentials);
    if (failed >= 0) failed = gnutls_set_default_priority(c->session);
    if (failed >= 0)
        failed = gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE, c->credentials);
    if (failed >= 0) {
        gnutls_transport_set_int(c->session, fd);
        do failed = gnutls_handshake(c->session);
        while (failed < 0 && !gnutls_error_is_fatal(failed) && failed != GNUTLS_E_AGAIN);
    }
    if (failed >= 0) {
        *out = c;
        return true;
    }
    tls_client_close(c);
    return error_set(err, ERR_IO, NULL, "no TLS handshake: %s", gnutls_strerror(failed));
}

ssize_t tls_client_send(struct tls_client *c, const void *bytes, size_t n)
{
    return gnutls_record_send(c->session, bytes, n);
}

ssize_t tls_client_recv(struct tls_client *c, void *bytes, size_t n)
{
    return gnutls_record_recv(c->session, bytes, n);
}

void tls_client_close(struct tls_client *c)
{
    if (!c) return;
    if (c->session) gnutls_deinit(c->session);
    if (c->credentials) gnutls_certificate_free_credentials(c->credentials);
    free(c);
}
