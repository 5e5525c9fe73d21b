/* `gptd convert`: any model that gptd reads, as a Hugging Face directory or as a GGUF file. Weights
 * stream from file to file: memory does not grow with the model. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/file.h"
#include "model/checkpoint.h"
#include "model/checkpoint_write.h"
#include "model/checkpoint_write_gguf.h"
#include "model/checkpoint_write_internal.h"
#include "model/dtype_write.h"
#include "model/tokenizer.h"
#include "server/command.h"

enum { NAME_BYTES = 128 };

struct convert_options {
    const char *model, *output, *format, *dtype;
    bool overwrite;
};

struct conversion {
    const char *output;
    bool gguf;
    enum dtype dtype;
    struct checkpoint *ck;
    struct tokenizer *tokenizer; /* NULL: none */
};

static bool is_gguf_name(const char *path)
{
    size_t n = strlen(path);
    return n > 5 && strcasecmp(path + n - 5, ".gguf") == 0;
}

static bool check_options(const struct convert_options *o, struct error *err)
{
    enum dtype dtype;
    if (!o->model || !o->output)
        return error_set(err, ERR_INVALID, o->model ? "output" : "model",
                         "say what and where to: gptd convert --model PATH --output PATH");
    if (o->format && strcmp(o->format, "hf") != 0 && strcmp(o->format, "gguf") != 0)
        return error_set(err, ERR_INVALID, "format", "--format %s: must be hf or gguf", o->format);
    if (o->dtype && (!dtype_parse(o->dtype, &dtype) || !dtype_is_written(dtype)))
        return error_set(err, ERR_INVALID, "dtype", "--dtype %s: must be f32, bf16, f16 or q8_0",
                         o->dtype);
    bool gguf = o->format ? strcmp(o->format, "gguf") == 0 : is_gguf_name(o->output);
    if (!gguf && o->dtype && dtype == DTYPE_Q8_0)
        return error_set(err, ERR_INVALID, "dtype",
                         "--dtype q8_0 needs --format gguf: a Hugging Face directory holds f32, "
                         "bf16 or f16");
    return true;
}

/* As the file has it; element types that gptd does not write become f16. */
static enum dtype default_dtype(const struct checkpoint *ck, bool gguf)
{
    enum dtype dtype = checkpoint_dtype(ck);
    bool kept = dtype_is_written(dtype) && (gguf || dtype != DTYPE_Q8_0);
    return kept ? dtype : DTYPE_F16;
}

/* Counts a directory that cannot be read as one that holds something. */
static bool is_empty(const char *directory)
{
    DIR *d = opendir(directory);
    const struct dirent *entry = NULL;
    if (!d) return false;
    do entry = readdir(d);
    while (entry && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0));
    closedir(d);
    return !entry;
}

/* A conversion never writes over its own source, and over anything else only when told to. */
static bool check_output(const struct convert_options *o, struct error *err)
{
    struct stat model, output;
    if (stat(o->output, &output) != 0) return true;
    if (stat(o->model, &model) == 0 && model.st_dev == output.st_dev &&
        model.st_ino == output.st_ino)
        return error_set(err, ERR_INVALID, "output",
                         "%s is the model itself: choose another output", o->output);
    if (o->overwrite) return true;
    if (!S_ISDIR(output.st_mode))
        return error_set(err, ERR_INVALID, "output", "%s exists: choose another output, or say "
                         "--overwrite", o->output);
    return is_empty(o->output) || error_set(err, ERR_INVALID, "output",
                                            "%s holds files already: choose another output, or say "
                                            "--overwrite", o->output);
}

/* The last component of the model's path, less ".gguf". */
static void name_of(const char *path, char out[NAME_BYTES])
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    if (is_gguf_name(path)) end -= 5;
    snprintf(out, NAME_BYTES, "%.*s", (int)(end - begin), path + begin);
}

static bool write_gguf(const struct conversion *c, const struct weight_source *source,
                       struct error *err)
{
    char name[NAME_BYTES];
    name_of(checkpoint_path(c->ck), name);
    struct gguf_export e = {.source = source, .dtype = c->dtype, .name = name,
                            .gguf = checkpoint_gguf(c->ck), .tokenizer = c->tokenizer};
    if (file_is_dir(c->output))
        return error_set(err, ERR_INVALID, "output",
                         "%s is a directory: a GGUF model is one file", c->output);
    return checkpoint_write_gguf(&e, c->output, err);
}

static bool write_hf(const struct conversion *c, const struct weight_source *source,
                     struct error *err)
{
    return checkpoint_write_source(source, c->dtype, c->output, err) &&
           checkpoint_write_tokenizer(checkpoint_path(c->ck), c->output, err) &&
           checkpoint_seal(c->output, err);
}

static bool convert(const struct convert_options *o, struct conversion *c, struct error *err)
{
    if (!checkpoint_open(o->model, &c->ck, err)
        || !checkpoint_open_tokenizer(c->ck, &c->tokenizer, err))
        return false;
    c->gguf = o->format ? strcmp(o->format, "gguf") == 0 : is_gguf_name(o->output);
    c->output = o->output;
    c->dtype = default_dtype(c->ck, c->gguf);
    if (o->dtype) ASSERT(dtype_parse(o->dtype, &c->dtype));
    struct weight_source source = weight_source_of_checkpoint(c->ck);
    return c->gguf ? write_gguf(c, &source, err) : write_hf(c, &source, err);
}

int cmd_convert(int argc, char **argv)
{
    struct convert_options o = {0};
    struct conversion c = {0};
    struct error err;
    bool help;
    int n_positional = 0;
    const struct option table[] = {
        {"model", OPTION_STRING, &o.model, 0, 0, "PATH",
         "What to convert: a Hugging Face directory or a .gguf file."},
        {"output", OPTION_STRING, &o.output, 0, 0, "PATH",
         "The directory or file to write. Written whole or not at all."},
        {"format", OPTION_STRING, &o.format, 0, 0, "hf|gguf",
         "What to write; without it gguf where the output ends in .gguf, else hf."},
        {"dtype", OPTION_STRING, &o.dtype, 0, 0, "f32|bf16|f16|q8_0",
         "Element type of the matrices; without it the model's own (f16 for other quantized "
         "types). q8_0 is for gguf."},
        {"overwrite", OPTION_FLAG, &o.overwrite, 0, 0, NULL,
         "Write into a directory that holds files already, or replace a file."},
    };
    size_t n = sizeof table / sizeof *table;
    if (!options_parse(table, n, argc, argv, 2, NULL, 0, &n_positional, &help, &err))
        return command_usage("convert", &err);
    if (help) {
        options_print_help(stdout, "gptd convert --model PATH --output PATH [OPTIONS]",
                           "Writes a model, with its tokenizer, in another format or element type.",
                           table, n);
        return EXIT_DONE;
    }
    if (!check_options(&o, &err) || !check_output(&o, &err)) return command_usage("convert", &err);
    bool ok = convert(&o, &c, &err);
    if (ok)
        printf("%s: %s, %s%s%s\n", o.output, c.gguf ? "gguf" : "huggingface",
               dtype_info(c.dtype)->name, c.tokenizer ? ", " : ", no tokenizer",
               c.tokenizer ? tokenizer_description(c.tokenizer) : "");
    tokenizer_free(c.tokenizer);
    checkpoint_close(c.ck);
    return ok ? EXIT_DONE : command_fail("convert", &err);
}
