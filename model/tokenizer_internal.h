/* What the parts of the tokenizer share. Only model/tokenizer*.c and their tests include it.
 *
 * A tokenizer is filled by one of the readers (tokenizer_json.c, tokenizer_gguf.c,
 * tokenizer_files.c) through the builder (tokenizer_build.c) and read-only afterwards. Text becomes
 * ids in stages, each a file:
 *
 *     text
 *       │ tokenizer_added.c        added tokens that match the text as it is
 *       ▼ tokenizer_normalize.c    what lies between them, normalized
 *       │ tokenizer_added.c        added tokens that match normalized text
 *       ▼ tokenizer_pretokenize.c  what lies between them: a prefix, then cut into pieces
 *     ids ◀─ tokenizer_bpe.c       each piece merged
 *
 * What travels between the stages is a span of bytes; `struct encoder` carries the scratch of one
 * call. */
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "model/tokenizer.h"

enum {
    TOKENIZER_MAX_TOKENS = 1 << 22, /* ids lie below */
    TOKENIZER_MAX_TEXT = 1 << 16,   /* bytes of one token */
    TOKENIZER_MAX_STEPS = 8,        /* normalizers; pre-tokenizer splits */
    TOKENIZER_MAX_STOPS = 16,
};

/* ---- Hash maps (tokenizer_map.c): sized once, never grown, read by every thread. ---- */

struct text_slot {
    const char *text; /* NULL: empty slot; borrowed */
    uint32_t n;
    int32_t id;
};
struct text_map {
    struct text_slot *slots;
    size_t mask;
};
bool text_map_init(struct text_map *m, size_t n_max) MUST_CHECK; /* false: out of memory */
void text_map_free(struct text_map *m);
int32_t text_map_get(const struct text_map *m, const char *text, size_t n); /* -1: absent */
/* Adds text -> id. When the text is there already, nothing changes; returns the id that it has. */
int32_t text_map_add(struct text_map *m, const char *text, size_t n, int32_t id);

struct pair_slot {
    uint64_t key;  /* PAIR_EMPTY: empty slot */
    uint32_t rank;
    int32_t id;
};
struct pair_map {
    struct pair_slot *slots;
    size_t mask;
};
#define PAIR_EMPTY UINT64_MAX
bool pair_map_init(struct pair_map *m, size_t n_max) MUST_CHECK;
void pair_map_free(struct pair_map *m);
const struct pair_slot *pair_map_get(const struct pair_map *m, uint64_t key); /* NULL: absent */
void pair_map_put(struct pair_map *m, uint64_t key, uint32_t rank, int32_t id); /* replaces */

/* ---- The tokenizer ---- */

enum {
    TOKEN_EXISTS = 1,
    TOKEN_SPECIAL = 2, /* matched only when the caller parses special tokens */
    TOKEN_ADDED = 4,   /* matched in the text before anything else */
    TOKEN_BYTE = 8,    /* <0xNN>, the fallback for one byte */
    TOKEN_LITERAL = 16, /* its piece cannot come out of merging: not in the alphabet */
    /* How an added token matches (Hugging Face's words). */
    ADDED_LSTRIP = 32,
    ADDED_RSTRIP = 64,
    ADDED_SINGLE_WORD = 128,
    ADDED_NORMALIZED = 256,
};

struct token {
    const char *text;  /* the bytes it stands for in running text */
    const char *piece; /* what merging calls it: equal to text but for SentencePiece's U+2581 */
    uint32_t n_text, n_piece;
    uint32_t rank;     /* scored vocabularies: the lower, the earlier it is merged */
    uint32_t flags;
};

/* A trie over the bytes of the added tokens' contents. */
struct added_set {
    struct pair_map edges; /* node << 8 | byte -> id: child node */
    int32_t *accept;       /* [n_nodes] token id, or -1 */
    int32_t n_nodes;
    bool first[256];       /* bytes that some content begins with */
};

enum normalizer_op { NORMALIZE_NFC, NORMALIZE_PREPEND, NORMALIZE_REPLACE };
struct normalizer {
    enum normalizer_op op;
    const char *from, *to; /* REPLACE: both; PREPEND: to */
    size_t n_from, n_to;
};

/* Hugging Face's words for what a split does with the text that its pattern matches. */
enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};
struct split_step {
    pcre2_code *code;
    const char *pattern; /* as the file has it */
    enum split_behavior behavior;
    bool invert;
};

enum prefix_when { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS };

struct tokenizer {
    enum tokenizer_kind kind;
    struct arena arena;   /* all strings */
    struct token *tokens; /* [n_tokens], by id; ids without a token are zeroed */
    int32_t n_tokens;
    size_t max_token_bytes;
    size_t max_piece;

    /* The model. */
    bool byte_level;    /* pieces are bytes; else characters */
    bool scored;        /* merge what gives the best-ranked piece; else follow `merges` */
    bool byte_fallback; /* an unknown character becomes its bytes' tokens */
    bool fuse_unk;      /* a run of unknown characters becomes one unk */
    bool ignore_merges; /* a pre-token that is a token is that token, whatever the merges say */
    bool words_apart;   /* no piece has a U+2581 but at its beginning: words merge separately */
    int32_t unk;
    int32_t byte_ids[256]; /* the token of a single byte, or -1 */
    size_t n_merges;
    struct pair_map merges; /* left id << 32 | right id -> rank, id of the merged */
    struct text_map pieces; /* pieces that merging may produce */
    struct text_map whole;  /* pieces that merging leaves whole */

    /* The stages before it. */
    struct added_set added;            /* matched in the text as it is */
    struct added_set added_normalized; /* matched after normalizing */
    int32_t n_normalizers;
    struct normalizer normalizers[TOKENIZER_MAX_STEPS];
    enum prefix_when prefix_when;
    const char *prefix; /* put before a text that does not begin with it */
    size_t n_prefix;
    bool metaspace;     /* spaces become U+2581 just before the prefix is put */
    int32_t n_steps;
    struct split_step steps[TOKENIZER_MAX_STEPS];
    bool drops_text;    /* some text leaves no trace in the ids: its size bounds nothing */

    /* Around it. */
    struct text_map specials; /* content of special tokens */
    bool strips_space; /* decoding drops the one leading space */
    bool adds_bos;
    int32_t bos, eos;
    int32_t stops[TOKENIZER_MAX_STOPS];
    int n_stops;
    const char *chat_template;
    char description[96];
};

/* ---- One encode call ---- */

struct symbol {
    uint32_t start, n;  /* its bytes in the piece; n = 0: merged into the one on its left */
    int32_t id;         /* -1: no token (scored vocabularies) */
    int32_t prev, next; /* -1: none */
};
struct candidate {
    uint64_t order; /* rank << 32 | index of the left symbol: the least is merged first */
    uint32_t n;     /* bytes of both; differs when the entry is out of date */
    int32_t id;
};

struct encoder;
/* The stages. Each hands spans of its input on to the next in the order of the text. */
typedef bool (*span_fn)(struct encoder *e, const char *s, size_t n);

struct encoder {
    const struct tokenizer *t;
    const char *text; /* the caller's */
    size_t n_text;
    bool parse_special;
    bool begun; /* something of the text has been encoded */
    struct token_ids *out;
    size_t max_ids;
    size_t n_ids; /* so far */
    struct error *err;
    span_fn piece; /* where pre-tokens go: bpe_encode, or whoever wants to see them */
    void *piece_ctx;

    struct buf normalized, spare, prefixed;
    pcre2_match_data *match;
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
    uint32_t n_matches;  /* of patterns */
    int64_t deadline_ns; /* of this thread's own time: patterns give up; 0: not yet set */
    struct symbol *symbols; /* [n_symbols] */
    size_t n_symbols;
    struct candidate *heap; /* [2 * n_symbols] */
};

bool encoder_push(struct encoder *e, int32_t id) MUST_CHECK;
/* Cuts text as the pre-tokenizer does and hands each piece to `piece`, whose e->piece_ctx is
 * ctx. */
bool tokenizer_pieces(const struct tokenizer *t, const char *text, size_t n, span_fn piece,
                      void *ctx, struct error *err) MUST_CHECK;

/* tokenizer_added.c */
bool added_set_init(struct added_set *set, size_t n_bytes) MUST_CHECK;
void added_set_free(struct added_set *set);
void added_set_add(struct added_set *set, const char *content, size_t n, int32_t id);
/* Pushes the ids of the added tokens that match in s (leftmost, longest), calls rest for what lies
 * between. */
bool added_split(struct encoder *e, const struct added_set *set, const char *s, size_t n,
                 span_fn rest) MUST_CHECK;

/* tokenizer_normalize.c: *s, *n become the normalized text, in e->normalized unless unchanged. */
bool normalize(struct encoder *e, const char **s, size_t *n) MUST_CHECK;
bool normalize_once(const struct normalizer *op, const char *s, size_t n, struct buf *out,
                    struct error *err) MUST_CHECK;

/* tokenizer_pretokenize.c */
bool pretokenize(struct encoder *e, const char *s, size_t n) MUST_CHECK; /* pushes ids */
/* Appends a step. `pattern` is in Oniguruma's syntax, as tokenizer.json has it, or a literal. */
bool pretokenize_add(struct tokenizer *t, const char *pattern, size_t n, bool literal,
                     enum split_behavior behavior, bool invert, const char *where,
                     struct error *err) MUST_CHECK;
/* Appends the steps of a pre-tokenizer that GGUF knows by name; ERR_UNSUPPORTED for another. */
bool pretokenize_add_named(struct tokenizer *t, const char *name, size_t n, const char *where,
                           struct error *err) MUST_CHECK;
/* Appends the steps of a family ("gpt2", "llama3", ...); the error lists them all. */
bool pretokenize_add_family(struct tokenizer *t, const char *family, struct error *err) MUST_CHECK;
extern const char pretokenize_gpt2[];
/* What the tokenizer's steps are usually called ("gpt2"), or NULL. */
const char *pretokenize_family(const struct tokenizer *t);

/* tokenizer_bpe.c: pushes the ids of one piece. */
bool bpe_encode(struct encoder *e, const char *s, size_t n) MUST_CHECK;
/* Is `id` what merging makes of the token's own piece? False for one over BPE_WHOLE bytes:
 * pre-tokens of that length are rare, and asking costs the square of it. */
bool bpe_keeps_whole(const struct tokenizer *t, int32_t id);
enum { BPE_SHORT = 32, BPE_WHOLE = 16 };

/* ---- Building (tokenizer_build.c) ----
 *
 *     builder_init, builder_token (each), then the fields of b.t that say what kind of model it
 *     is, builder_texts, builder_merges, builder_merge (each), normalizers and splits,
 *     builder_added (each), bos and the rest, builder_finish. */

struct raw_token {
    const char *s; /* NULL: the id has no token */
    size_t n;
};
struct builder {
    struct tokenizer *t;
    const char *where;      /* the file, for messages */
    struct error *err;
    struct raw_token *raw;  /* [n_tokens] as the file writes them; borrowed from it */
    struct text_map by_raw; /* the same by text */
    bool marks_spaces;      /* U+2581 in a token stands for a space */
    struct buf joined;      /* scratch of builder_merge */
};

/* A tokenizer for ids 0..max_id with at most n_max distinct token strings. On failure nothing is
 * left behind. */
bool builder_init(struct builder *b, size_t n_max, int64_t max_id, const char *where,
                  struct error *err) MUST_CHECK;
void builder_free(struct builder *b); /* with the tokenizer, unless builder_finish took it */
bool builder_token(struct builder *b, int64_t id, const char *raw, size_t n) MUST_CHECK;
/* The id of a token by the string that the file has, or -1. */
int32_t builder_find(const struct builder *b, const char *raw, size_t n);
/* Derives text and piece of every token from its raw string and the kind of model. */
bool builder_texts(struct builder *b) MUST_CHECK;
/* Makes room for n merges. */
bool builder_merges(struct builder *b, size_t n) MUST_CHECK;
/* The next merge, in order of rank; of equal ones the last counts. */
bool builder_merge(struct builder *b, const char *left, size_t n_left, const char *right,
                   size_t n_right) MUST_CHECK;
/* "left right" */
bool builder_merge_line(struct builder *b, const char *line, size_t n) MUST_CHECK;
/* An added token; its id may be one of the vocabulary. `flags`: TOKEN_SPECIAL, ADDED_*. */
bool builder_added(struct builder *b, int64_t id, const char *content, size_t n, uint32_t flags)
    MUST_CHECK;
/* Indexes everything; the tokenizer is the caller's from here. */
bool builder_finish(struct builder *b, struct tokenizer **out) MUST_CHECK;
bool builder_normalizer(struct builder *b, enum normalizer_op op, const char *from, size_t n_from,
                        const char *to, size_t n_to) MUST_CHECK;
void builder_stop(struct tokenizer *t, int32_t id); /* id < 0 or known already: nothing */

/* byte_of[c]: the byte that character c stands for in byte-level vocabularies, or -1. */
enum { BYTE_ALPHABET_END = 0x144 };
void byte_alphabet(int16_t byte_of[BYTE_ALPHABET_END]);

#define SPACE_MARK "\xE2\x96\x81" /* U+2581, SentencePiece's space */
