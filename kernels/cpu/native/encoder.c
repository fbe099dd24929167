/* A BERT encoder in one call, on the caller's thread: embedding, layers of bidirectional attention and an MLP, each followed by
 * a norm, then one vector of length 1 for each text.
 *
 * Texts lie behind each other in one row of tokens. Each attends to itself alone, over all of its keys in order; so its vector
 * is the same to the last bit whatever texts lie beside it.
 */

#include <math.h>

#include "penstock.h"

/* Rows whose MLP is computed at once, so that what lies between its two products stays in cache. */
enum { MLP_ROWS = 96 };
/* Queries and keys that are multiplied together: 8 by 2 sums, 2 keys and a query are 19 of 32 registers; 4 by 1, of two
 * registers each, 11 of 16. */
enum { QUERIES = HELD < 32 ? 4 : 8, KEY_VECTORS = HELD < 32 ? 1 : 2, KEYS = KEY_VECTORS * LANES };

enum { MEAN, FIRST };

struct layer_norm {
    const float *weight, *bias; /* [hidden] */
};

struct encoder_layer {
    struct matrix qkv, out, up, down;
    struct layer_norm attention_norm, norm;
};

struct encoder {
    const float *words;     /* [vocabulary, hidden] */
    const float *positions; /* [positions, hidden], each with the first segment's row added */
    struct layer_norm norm;
    const struct encoder_layer *layers;
    long num_layers, hidden, heads, intermediate; /* hidden and intermediate: multiples of LANES */
    float eps;
    int pooling;
};

struct texts {
    const int64_t *token_ids; /* [rows], text behind text */
    const int64_t *lengths;   /* [count] */
    long count, rows, longest;
    float *out;    /* [count, hidden] */
    char *scratch; /* penstock_encoder_scratch bytes, aligned to 64 */
};

static long rounded_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }
static long at_most(long value, long limit) { return value < limit ? value : limit; }
static long most(long a, long b) { return a > b ? a : b; }

/* What is computed between products, as it lies in the scratch. */
struct room {
    float *x;    /* [rows, hidden] */
    float *wide; /* [rows, 3 * hidden], or of MLP_ROWS rows [.., intermediate] */
    struct activations activations;
    float *keys;   /* of one text and head, [dim, columns]: the keys rounded up to KEYS */
    float *values; /* [keys, dim rounded up to KEYS] */
    float *scores; /* [QUERIES, columns] */
    char *end;
};

static char *take(char **next, long bytes) {
    char *own = *next;
    *next += rounded_up(bytes, 64);
    return own;
}

static struct room room_in(char *scratch, const struct encoder *e, const struct texts *texts) {
    const long rows = texts->rows, dim = e->hidden / e->heads, columns = rounded_up(texts->longest, KEYS);
    const long stride = rounded_up(most(e->hidden, e->intermediate), ROW_ALIGNMENT);
    struct room room;
    char *next = scratch;
    room.x = (float *)take(&next, rows * e->hidden * sizeof(float));
    room.wide = (float *)take(&next, most(rows * 3 * e->hidden, at_most(rows, MLP_ROWS) * e->intermediate) * sizeof(float));
    room.activations.values = (factor *)take(&next, rows * stride * sizeof(factor));
    room.activations.scale = (float *)take(&next, rows * sizeof(float));
    room.activations.zero = (float *)take(&next, rows * sizeof(float));
    room.activations.sum = (int32_t *)take(&next, rows * sizeof(int32_t));
    room.keys = (float *)take(&next, dim * columns * sizeof(float));
    room.values = (float *)take(&next, texts->longest * rounded_up(dim, KEYS) * sizeof(float));
    room.scores = (float *)take(&next, QUERIES * columns * sizeof(float));
    room.end = next;
    return room;
}

long penstock_encoder_scratch(const struct encoder *encoder, const struct texts *texts) {
    return (long)room_in(0, encoder, texts).end;
}

/* x * Phi(x), by a polynomial in x^2 for (Phi(x) - 1/2) / x on [-5.25, 5.25], outside of which Phi is 0 or 1 but for 8e-8.
 * Off by at most 1.5e-6 for |x| up to 10 (torch's float32: 1.1e-6), by 2e-8 of x beyond. The coefficients are a fit of least
 * maximum error, by weighted least squares. */
static inline floats gelu(floats x) {
    /* By the power of u; the even ones and the odd ones are two chains, which run side by side. */
    static const float even[] = {0.134659293f,   0.0496504742f,  0.0319679847f, 0.0188292209f,
                                 0.00790434903f, 0.00309493948f, 0.00098006186f};
    static const float odd[] = {-0.0671263397f, -0.0397821046f,  -0.02484251f,
                                -0.0136534616f, -0.00362198994f, -0.0028218078f};
    const float limit = 5.25f;
    x = v_max(v_all(-limit), x); /* in this order NaN stays */
    floats inside = v_min(v_all(limit), x);
    floats u = v_fma(v_mul(inside, inside), v_all(2 / (limit * limit)), v_all(-1.0f));
    floats square = v_mul(u, u), p = v_all(even[6]), q = v_all(odd[5]);
#pragma GCC unroll 8
    for (int i = 5; i >= 0; i--) p = v_fma(p, square, v_all(even[i]));
#pragma GCC unroll 8
    for (int i = 4; i >= 0; i--) q = v_fma(q, square, v_all(odd[i]));
    return v_mul(x, v_fma(v_fma(q, u, p), inside, v_all(0.5f)));
}

/* In place: less its mean, over its standard deviation, times weight plus bias. */
static void normalize(float *x, const struct layer_norm *norm, long width, float eps) {
    floats sum = v_zero(), squares = v_zero();
    for (long at = 0; at < width; at += LANES) sum = v_add(sum, v_load(x + at));
    floats mean = v_all(v_sum(sum) / width);
    for (long at = 0; at < width; at += LANES) {
        floats value = v_sub(v_load(x + at), mean);
        squares = v_fma(value, value, squares);
    }
    floats factor = v_all(1.0f / sqrtf(v_sum(squares) / width + eps));
    for (long at = 0; at < width; at += LANES) {
        floats value = v_mul(v_sub(v_load(x + at), mean), factor);
        floats weight = v_load(norm->weight + at), bias = v_load(norm->bias + at);
        v_store(x + at, v_fma(value, weight, bias));
    }
}

static void embed(const struct encoder *e, const struct texts *texts, float *x) {
    const int64_t *token_id = texts->token_ids;
    for (long text = 0; text < texts->count; text++)
        for (long position = 0; position < texts->lengths[text]; position++, token_id++, x += e->hidden) {
            const float *word = e->words + *token_id * e->hidden, *place = e->positions + position * e->hidden;
            for (long at = 0; at < e->hidden; at++) x[at] = word[at] + place[at];
            normalize(x, &e->norm, e->hidden, e->eps);
        }
}

/* The keys of one head become columns, its values rows without gaps; what is past them is zeros. */
static void load_keys_and_values(const float *keys, const float *values, long rows, long dim, long stride,
                                 const struct room *room) {
    const long columns = rounded_up(rows, KEYS), width = rounded_up(dim, KEYS);
    for (long first = 0; first < columns; first += LANES) {
        const float *own[LANES];
        for (long i = 0; i < LANES; i++) own[i] = keys + at_most(first + i, rows - 1) * stride;
        for (long at = 0; at < dim; at += LANES)
            load_columns(own, rows - first, at, dim - at, room->keys + at * columns + first, columns);
    }
    for (long row = 0; row < rows; row++, values += stride)
        for (long at = 0; at < width; at += LANES)
            v_store(room->values + row * width + at, v_load_some(lanes(dim - at), values + at));
}

/* scores [m, columns] of `m` queries, a compile-time constant, by every key. */
static inline __attribute__((always_inline)) void score(const int m, const float *const queries[QUERIES], const float *keys,
                                                        long columns, long dim, float *scores) {
    for (long first = 0; first < columns; first += KEYS) {
        floats sums[QUERIES][KEY_VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 2
            for (int j = 0; j < KEY_VECTORS; j++) sums[i][j] = v_zero();
        for (long d = 0; d < dim; d++) {
            floats key[KEY_VECTORS];
#pragma GCC unroll 2
            for (int j = 0; j < KEY_VECTORS; j++) key[j] = v_load(keys + d * columns + first + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                floats query = v_all(queries[i][d]);
#pragma GCC unroll 2
                for (int j = 0; j < KEY_VECTORS; j++) sums[i][j] = v_fma(query, key[j], sums[i][j]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 2
            for (int j = 0; j < KEY_VECTORS; j++) v_store(scores + i * columns + first + j * LANES, sums[i][j]);
    }
}

/* One query's scores of `keys` keys become e^(scaling * (score - the highest)); returns their sum. */
static float weigh(float *scores, long keys, float scaling) {
    floats highest = v_all(-INFINITY), sum = v_zero();
    for (long at = 0; at < keys; at += LANES)
        highest = v_choose(lanes(keys - at), v_max(highest, v_load(scores + at)), highest);
    floats best = v_all(v_highest(highest));
    for (long at = 0; at < keys; at += LANES) {
        floats below = v_sub(v_load(scores + at), best);
        floats weight = exponential(v_mul(below, v_all(scaling)));
        weight = v_choose(lanes(keys - at), weight, v_zero());
        v_store(scores + at, weight);
        sum = v_add(sum, weight);
    }
    return v_sum(sum);
}

/* The values by the weights of `m` queries, a compile-time constant, over `total`; of the first `count` to `out`. */
static inline __attribute__((always_inline)) void add_values(const int m, const float *weights, long columns,
                                                             const float *values, long keys, long dim, const float *total,
                                                             long count, float *out, long stride) {
    const long width = rounded_up(dim, KEYS);
    for (long at = 0; at < dim; at += KEYS) {
        floats sums[QUERIES][KEY_VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 2
            for (int j = 0; j < KEY_VECTORS; j++) sums[i][j] = v_zero();
        for (long key = 0; key < keys; key++) {
            floats value[KEY_VECTORS];
#pragma GCC unroll 2
            for (int j = 0; j < KEY_VECTORS; j++) value[j] = v_load(values + key * width + at + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                floats weight = v_all(weights[i * columns + key]);
#pragma GCC unroll 2
                for (int j = 0; j < KEY_VECTORS; j++) sums[i][j] = v_fma(weight, value[j], sums[i][j]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            if (i >= count) break;
            floats divisor = v_all(total[i]);
            for (long j = 0; j < KEY_VECTORS; j++) {
                const long column = at + j * LANES;
                v_store_some(lanes(dim - column), out + i * stride + column, v_div(sums[i][j], divisor));
            }
        }
    }
}

/* `count` of the rows of one head, which are at most `m`, from `own` on: what they attend to takes the place of their q. */
static inline __attribute__((always_inline)) void attend_rows(const int m, float *own, long count, long keys, long dim,
                                                              long stride, const struct room *room) {
    const long columns = rounded_up(keys, KEYS);
    const float *queries[QUERIES];
    float total[QUERIES];
    /* Where there are fewer, the last stands for the missing. */
    for (long i = 0; i < m; i++) queries[i] = own + at_most(i, count - 1) * stride;
    score(m, queries, room->keys, columns, dim, room->scores);
    for (long i = 0; i < count; i++) total[i] = weigh(room->scores + i * columns, keys, 1.0f / sqrtf(dim));
    add_values(m, room->scores, columns, room->values, keys, dim, total, count, own, stride);
}

/* One text's q k v [rows, 3 * hidden] by themselves; what each row attends to takes the place of its q. */
static void attend_text(const struct encoder *e, float *qkv, long rows, const struct room *room) {
    const long dim = e->hidden / e->heads, stride = 3 * e->hidden;
    for (long head = 0; head < e->heads; head++) {
        float *own = qkv + head * dim;
        load_keys_and_values(own + e->hidden, own + 2 * e->hidden, rows, dim, stride, room);
        for (long first = 0; first < rows; first += QUERIES) {
            const long count = at_most(rows - first, QUERIES);
            if (count > QUERIES / 2) {
                attend_rows(QUERIES, own + first * stride, count, rows, dim, stride, room);
            } else {
                attend_rows(QUERIES / 2, own + first * stride, count, rows, dim, stride, room);
            }
        }
    }
}

static void quantize(const float *x, long rows, long width, long stride, struct activations *out) {
    out->stride = rounded_up(width, ROW_ALIGNMENT);
    for (long row = 0; row < rows; row++) quantize_row(x + row * stride, width, out, row);
}

/* In place, and quantized. */
static void normalize_rows(const struct encoder *e, const struct layer_norm *norm, float *x, long rows,
                           struct activations *out) {
    out->stride = rounded_up(e->hidden, ROW_ALIGNMENT);
    for (long row = 0; row < rows; row++) {
        normalize(x + row * e->hidden, norm, e->hidden, e->eps);
        quantize_row(x + row * e->hidden, e->hidden, out, row);
    }
}

/* GELU and quantized: each row while it is in the nearest cache, where both together would leave it. */
static void activate_rows(float *x, long rows, long width, struct activations *out) {
    out->stride = rounded_up(width, ROW_ALIGNMENT);
    for (long row = 0; row < rows; row++, x += width) {
        for (long at = 0; at < width; at += LANES) v_store(x + at, gelu(v_load(x + at)));
        quantize_row(x, width, out, row);
    }
}

static void compute_layer(const struct encoder *e, const struct encoder_layer *layer, const struct texts *texts,
                          struct room *room) {
    const long rows = texts->rows, stride = 3 * e->hidden;
    struct activations *in = &room->activations;
    quantize(room->x, rows, e->hidden, e->hidden, in);
    multiply(in, rows, &layer->qkv, 0, room->wide, 1);
    float *qkv = room->wide;
    for (long text = 0; text < texts->count; qkv += texts->lengths[text++] * stride)
        attend_text(e, qkv, texts->lengths[text], room);
    quantize(room->wide, rows, e->hidden, stride, in);
    multiply(in, rows, &layer->out, room->x, room->x, 1);
    for (long first = 0; first < rows; first += MLP_ROWS) {
        const long count = at_most(rows - first, MLP_ROWS);
        float *x = room->x + first * e->hidden;
        normalize_rows(e, &layer->attention_norm, x, count, in);
        multiply(in, count, &layer->up, 0, room->wide, 1);
        activate_rows(room->wide, count, e->intermediate, in);
        multiply(in, count, &layer->down, x, x, 1);
        for (long row = 0; row < count; row++) normalize(x + row * e->hidden, &layer->norm, e->hidden, e->eps);
    }
}

/* Of a text's rows, the mean or the first, made length 1. */
static void pool(const struct encoder *e, const float *x, long rows, float *out) {
    const long counted = e->pooling == FIRST ? 1 : rows;
    floats squares = v_zero();
    for (long at = 0; at < e->hidden; at += LANES) {
        floats sum = v_zero();
        for (long row = 0; row < counted; row++) sum = v_add(sum, v_load(x + row * e->hidden + at));
        sum = v_div(sum, v_all(counted));
        squares = v_fma(sum, sum, squares);
        v_store(out + at, sum);
    }
    const float length = sqrtf(v_sum(squares));
    for (long at = 0; at < e->hidden; at++) out[at] /= length > 1e-12f ? length : 1e-12f;
}

void penstock_encode(const struct encoder *encoder, const struct texts *texts) {
    struct room room = room_in(texts->scratch, encoder, texts);
    embed(encoder, texts, room.x);
    for (long i = 0; i < encoder->num_layers; i++) compute_layer(encoder, encoder->layers + i, texts, &room);
    const float *x = room.x;
    for (long text = 0; text < texts->count; x += texts->lengths[text++] * encoder->hidden)
        pool(encoder, x, texts->lengths[text], texts->out + text * encoder->hidden);
}
