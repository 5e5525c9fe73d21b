/* A multipart/form-data body on its way to the disk: libmicrohttpd's post processor takes it apart,
 * piece by piece; nothing of the file is kept in memory. The connection's thread's. */
#pragma once

#include <microhttpd.h>

#include "server/files.h"

struct upload;

/* NULL with ERR_UNSUPPORTED when the request's headers announce no such body. */
bool upload_begin(struct file_store *s, struct MHD_Connection *connection, struct upload **out,
                  struct error *err) MUST_CHECK;
/* The next bytes. What goes wrong is kept for upload_finish; false once something has. */
bool upload_feed(struct upload *u, const char *data, size_t n);
const struct error *upload_error(const struct upload *u); /* code ERR_NONE: all is well */
/* The body has ended: the file gets its name. May wait for the disk. */
bool upload_finish(struct upload *u, struct api_file *out, struct error *err) MUST_CHECK;
void upload_free(struct upload *u); /* drops what was not finished. NULL-safe */
