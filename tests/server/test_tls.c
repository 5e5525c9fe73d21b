/* Tests of server/tls.c: pairs that fit and pairs that do not, made here; handshakes, and the
 * client's side, with a bare libmicrohttpd. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <gnutls/x509.h>

#include "base/log.h"
#include "server/connection.h"
#include "server/tls.h"

static char folder[64], cert[96], key[96], other_key[96];

static void write_file(const char *path, const gnutls_datum_t *d)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(d->data, 1, d->size, f), d->size);
    fclose(f);
    chmod(path, 0600);
}

static gnutls_x509_privkey_t make_key(const char *path)
{
    gnutls_x509_privkey_t k;
    gnutls_datum_t pem;
    assert_int_equal(gnutls_x509_privkey_init(&k), 0);
    assert_int_equal(gnutls_x509_privkey_generate(
        k, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0), 0);
    assert_int_equal(gnutls_x509_privkey_export2(k, GNUTLS_X509_FMT_PEM, &pem), 0);
    write_file(path, &pem);
    gnutls_free(pem.data);
    return k;
}

static void make_cert(gnutls_x509_privkey_t k, const char *path)
{
    gnutls_x509_crt_t c;
    gnutls_datum_t pem;
    gnutls_x509_crt_init(&c);
    gnutls_x509_crt_set_version(c, 3);
    gnutls_x509_crt_set_serial(c, "\1", 1);
    gnutls_x509_crt_set_activation_time(c, time(NULL) - 60);
    gnutls_x509_crt_set_expiration_time(c, time(NULL) + 3600);
    gnutls_x509_crt_set_dn(c, "CN=test", NULL);
    gnutls_x509_crt_set_key(c, k);
    assert_int_equal(gnutls_x509_crt_sign2(c, c, k, GNUTLS_DIG_SHA256, 0), 0);
    assert_int_equal(gnutls_x509_crt_export2(c, GNUTLS_X509_FMT_PEM, &pem), 0);
    write_file(path, &pem);
    gnutls_free(pem.data);
    gnutls_x509_crt_deinit(c);
}

static int make_files(void **state)
{
    strcpy(folder, "/tmp/gptd-tls-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(cert, sizeof cert, "%s/c", folder);
    snprintf(key, sizeof key, "%s/k", folder);
    snprintf(other_key, sizeof other_key, "%s/o", folder);
    gnutls_x509_privkey_t k = make_key(key);
    make_cert(k, cert);
    gnutls_x509_privkey_deinit(k);
    gnutls_x509_privkey_deinit(make_key(other_key));
    return 0;
}

static int remove_files(void **state)
{
    unlink(cert);
    unlink(key);
    unlink(other_key);
    return rmdir(folder);
}

static void test_pairs(void **state)
{
    struct tls *t;
    struct error err;
    assert_true(tls_open(cert, key, &t, &err));
    assert_true(tls_reload(t, &err));
    tls_close(t);
    tls_close(NULL);
    assert_false(tls_open(cert, other_key, &t, &err));
    assert_string_equal(err.param, "tls-key");
    assert_non_null(strstr(err.text, "is not the key of"));
    assert_false(tls_open(key, key, &t, &err));
    assert_string_equal(err.param, "tls-cert");
    assert_false(tls_open(cert, cert, &t, &err));
    assert_string_equal(err.param, "tls-key");
    assert_false(tls_open("/dev/null/c", key, &t, &err));
    assert_false(tls_open(cert, "/dev/null/k", &t, &err));
}

/* ---- a server ---- */

static enum MHD_Result handle(void *cls, struct MHD_Connection *mhd, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *n, void **ctx)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(2, "ok", MHD_RESPMEM_PERSISTENT);
    enum MHD_Result result = MHD_queue_response(mhd, 200, r);
    MHD_destroy_response(r);
    return result;
}

static int dial(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)port)};
    struct timeval patience = {.tv_sec = 60};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static bool answers(int port)
{
    static const char get[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    struct tls_client *c;
    struct error err;
    char reply[512] = "";
    int fd = dial(port);
    bool ok = tls_client_open(fd, &c, &err);
    if (ok) {
        ok = tls_client_send(c, get, sizeof get - 1) == sizeof get - 1
             && tls_client_recv(c, reply, sizeof reply - 1) > 0 && strstr(reply, "200 OK");
        tls_client_close(c);
    }
    close(fd);
    return ok;
}

static void test_handshakes_while_the_pair_changes(void **state)
{
    struct connection_times times = {60, 60, 60, 60};
    struct MHD_OptionItem options[N_TLS_OPTIONS + 1] = {{MHD_OPTION_END, 0, NULL}};
    struct connections *all;
    struct tls *t;
    struct error err;
    assert_true(tls_open(cert, key, &t, &err));
    assert_true(connections_start(&times, 10, t, &all, &err));
    tls_options(options);
    options[N_TLS_OPTIONS].option = MHD_OPTION_END;
    struct MHD_Daemon *d = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_TLS, 0, NULL,
                                            NULL, handle, NULL, MHD_OPTION_NOTIFY_CONNECTION,
                                            connection_notify, all, MHD_OPTION_ARRAY, options,
                                            MHD_OPTION_END);
    assert_non_null(d);
    int port = MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT)->port;
    for (int i = 0; i < 20; i++) {
        assert_true(answers(port));
        assert_true(tls_reload(t, &err));
    }
    MHD_stop_daemon(d);
    connections_stop(all);
    tls_close(t);
}

static void test_a_client_of_something_else(void **state)
{
    int ends[2];
    struct tls_client *c;
    struct error err;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    assert_int_equal(write(ends[1], "HTTP/1.1 400 Bad Request\r\n\r\n", 28), 28);
    assert_false(tls_client_open(ends[0], &c, &err));
    assert_non_null(strstr(err.text, "handshake"));
    close(ends[0]);
    close(ends[1]);
    tls_client_close(NULL);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_handshakes_while_the_pair_changes),
        cmocka_unit_test(test_a_client_of_something_else),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
