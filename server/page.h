/* The web page: GET / and what it loads from /page/. The files of server/page/ are compiled into the
 * program as they are (the Makefile makes page_files.inc of them), so that there is nothing to
 * install beside it. The page is open to everyone; what it shows comes from the same API as
 * everything else, by the key that its user enters. Immutable; any thread's. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>

struct page_file {
    const char *name; /* "page.css" */
    const char *etag; /* quoted; changes with the bytes */
    const unsigned char *data;
    size_t size;
};

/* A file by its name, "" for the page itself; NULL: there is no such file. */
const struct page_file *page_find(const char *name);

/* By the end of the file's name. */
const char *page_content_type(const struct page_file *file);

/* Does the client have it already? if_none_match: the request's header; NULL: it has none. */
bool page_is_known(const struct page_file *file, const char *if_none_match);

/* The file with its headers, for status 200, and for 304, with which libmicrohttpd sends the headers
 * alone. NULL: no memory. */
struct MHD_Response *page_response(const struct page_file *file);
