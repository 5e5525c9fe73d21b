/* Headers with one reading: see header_guard.h. The rules are RFC 9112's (sections 3.2, 5.1, 6.1 to
 * 6.3), where it says that a server must, or may, refuse. */
#include "server/header_guard.h"

#include <string.h>
#include <strings.h>

struct seen {
    int headers, hosts, content_lengths, transfer_encodings;
    bool chunked, length_is_number, expects_other;
    bool bad_name, bad_value;
};

/* A token's characters (RFC 9110, 5.6.2). A name that ends in a space is another name here than for
 * who strips it. */
static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c <= ' ' || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c)) return false;
    }
    return n > 0;
}

static bool is_text(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f) return false;
    return true;
}

static enum MHD_Result look_at(void *cls, enum MHD_ValueKind kind, const char *name,
                               size_t name_size, const char *value, size_t value_size)
{
    struct seen *s = cls;
    s->headers++;
    if (!is_token(name, name_size)) s->bad_name = true;
    if (!value) value = "";
    if (!is_text(value, value_size)) s->bad_value = true;
    if (strcasecmp(name, "Host") == 0) s->hosts++;
    if (strcasecmp(name, "Content-Length") == 0) {
        s->content_lengths++;
        s->length_is_number = value_size > 0 && strspn(value, "0123456789") == value_size;
    }
    if (strcasecmp(name, "Transfer-Encoding") == 0) {
        s->transfer_encodings++;
        s->chunked = strcasecmp(value, "chunked") == 0;
    }
    if (strcasecmp(name, "Expect") == 0 && strcasecmp(value, "100-continue") != 0)
        s->expects_other = true;
    return MHD_YES;
}

static bool refuse(int *status, int number, struct error *err, const char *why)
{
    *status = number;
    return error_set(err, number == 431 ? ERR_TOO_LARGE : ERR_INVALID, NULL, "%s", why);
}

bool headers_are_plain(struct MHD_Connection *connection, const char *version, int *status,
                       struct error *err)
{
    struct seen s = {0};
    bool is_1_0 = strcmp(version, "HTTP/1.0") == 0;
    MHD_get_connection_values_n(connection, MHD_HEADER_KIND, look_at, &s);
    if (s.bad_name)
        return refuse(status, 400, err, "a header's name has a character that names cannot have, "
                                        "such as a space before the colon");
    if (s.bad_value) return refuse(status, 400, err, "a header has a control character");
    if (s.content_lengths + s.transfer_encodings > 1)
        return refuse(status, 400, err, "give one Content-Length or Transfer-Encoding: chunked, "
                                        "not both, not twice");
    if (s.content_lengths && !s.length_is_number)
        return refuse(status, 400, err, "Content-Length must be a number of bytes");
    if (s.transfer_encodings && (!s.chunked || is_1_0))
        return refuse(status, 400, err, "Transfer-Encoding must be chunked, of HTTP/1.1");
    if (s.hosts > 1 || (s.hosts == 0 && !is_1_0))
        return refuse(status, 400, err, "a request has one Host header");
    if (s.expects_other)
        return refuse(status, 417, err, "of Expect, only 100-continue is known");
    if (s.headers > MAX_HEADERS)
        return refuse(status, 431, err, "a request has at most 100 headers");
    return true;
}

bool uri_is_plain(const char *uri)
{
    int arguments = 1;
    for (const char *p = uri; *p; p++) arguments += *p == '&';
    return arguments <= MAX_ARGUMENTS;
}
