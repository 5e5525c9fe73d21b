/* A server in this process, with the shipped model, and the simplest possible client: for tests of
 * server/. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "server/http.h"
#include "server/model.h"

enum { HTTP_PATIENCE_S = 300 }; /* far more than any machine needs for what comes at all */

struct http_fixture {
    struct model model;
    struct api_context api;
    struct chat_template *chat;
    struct metrics *metrics;
    struct http_server *server;
    /* The device's operations, of which sync waits while `held`. */
    struct device_ops ops;
    const struct device_ops *real;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held, failing;
};

void http_fixture_options(struct http_options *o); /* loopback, any port, two threads */
/* Asserts that everything opens. o NULL: the options above. */
void http_fixture_open(struct http_fixture *f, const struct http_options *o);
void http_fixture_close(struct http_fixture *f);

/* Until it is called with false, a step of the engine that has begun does not end. */
void http_fixture_hold(struct http_fixture *f, bool held);

/* From now on the device fails. */
void http_fixture_fail(struct http_fixture *f);

int http_connect(const struct http_fixture *f);
/* All of them, unless the server has cut us off. */
void http_send(int fd, const void *bytes, size_t n);
/* "POST path" with this JSON and more header lines ("" or "Name: value\r\n"...). */
void http_post(int fd, const char *path, const char *headers, const char *json);
void http_reset(int fd); /* closes with RST */
/* Everything until the other side closes. The caller frees it. */
char *http_read_all(int fd, size_t *n);
/* One request on a connection of its own, its whole reply; the caller frees it. */
char *http_ask(const struct http_fixture *f, const char *request);
int http_status(const char *reply); /* 0: none */
/* The body, chunks put together in place; "" when there is none. */
char *http_body(char *reply);
/* Waits until nothing runs, is queued or holds a page, and no exchange is left. False when that has
 * not come to be in HTTP_PATIENCE_S. */
bool http_fixture_settles(const struct http_fixture *f);
