/* Causal attention over paged KV in float32, for ragged prompts and decodes alike.
 *
 * A row visits the keys of its context in tiles from fixed positions, in order, and keeps a running maximum; so its result is
 * the same in whatever chunk or batch it is computed. Keys past its own position are never read, only those that a later
 * row of the same piece needs; for this row their weights are zeros, which change nothing. Keys and values in bytes become
 * floats a tile at a time.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "penstock.h"

/* Rows of a piece, which read the keys once for all: those of one KV head, by position, then by head. */
enum { MOST_ROWS = 64, VECTORS = KEY_TILE / LANES };
/* Bytes that memory is read by. */
enum { LINE = 64 };

struct piece {
    const struct span *span;
    long kv_head, first, count;
};

struct work {
    const struct attention *attention;
    const struct piece *pieces;
    long num_pieces, threads;
};

static long at_most(long value, long limit) { return value < limit ? value : limit; }

/* `count` keys -> [key_dim, KEY_TILE]; columns past them are anything but what is not numbers. */
static void load_keys(const float *const rows[KEY_TILE], long count, long dim, float *out) {
    for (long first = 0; first < count; first += LANES)
        for (long at = 0; at < dim; at += LANES)
            load_columns(rows + first, count - first, at, dim - at, out + at * KEY_TILE + first, KEY_TILE);
}

/* Keys or values of a tile: where they lie, and what a byte of them counts for. */
struct side {
    const char *rows[KEY_TILE];
    float scales[KEY_TILE];
};

struct tile {
    struct side keys, values;
    long count, fetched;
};

/* Bytes of a row. */
static long row_size(const struct pool *pool, long dim) { return dim * (pool->scales ? sizeof(int8_t) : sizeof(float)); }

static inline void find_row(const struct pool *pool, long row, long dim, struct side *side, long i) {
    side->rows[i] = (const char *)pool->rows + row * row_size(pool, dim);
    if (pool->scales) side->scales[i] = pool->scales[row];
}

/* The rows of a side as floats: in place, or made of bytes in `made` [count, dim]. */
static void as_floats(const struct pool *pool, const struct side *side, long count, long dim, float *made,
                      const float *out[KEY_TILE]) {
    for (long i = 0; i < count; i++) {
        if (!pool->scales) {
            out[i] = (const float *)side->rows[i];
            continue;
        }
        const int8_t *bytes = (const int8_t *)side->rows[i];
        const floats scale = v_all(side->scales[i]);
        for (long at = 0; at < dim; at += LANES)
            v_store_some(lanes(dim - at), made + at, v_mul(v_from_bytes(bytes + at, dim - at), scale));
        out[i] = made;
        made += dim;
    }
}

static long last_position(const struct attention *a, const struct piece *piece) {
    return piece->span->first_position + (piece->first + piece->count - 1) / (a->heads / a->kv_heads);
}

/* The beginning of the first tile that a piece sees. */
static long first_tile(const struct attention *a, const struct piece *piece) {
    long position = piece->span->first_position + piece->first / (a->heads / a->kv_heads);
    return a->window && position >= a->window ? (position - a->window + 1) / KEY_TILE * KEY_TILE : 0;
}

static void find_tile(const struct attention *a, const struct piece *piece, long start, struct tile *tile) {
    const int32_t *table = piece->span->block_table;
    tile->count = at_most(last_position(a, piece) + 1 - start, KEY_TILE);
    tile->fetched = 0;
    for (long i = 0; i < tile->count; i++) {
        long position = start + i, slot = table[position / a->block_size] * a->block_size + position % a->block_size;
        find_row(&a->keys, piece->kv_head * a->slots + slot, a->key_dim, &tile->keys, i);
        find_row(&a->values, piece->kv_head * a->slots + slot, a->value_dim, &tile->values, i);
    }
}

/* Have one more row of a tile on its way, between products: the machine foresees no page of the pool, and all at once they would
 * wait for each other. */
static inline void fetch_row(const struct attention *a, struct tile *tile) {
    if (tile->fetched >= tile->count) return;
    const char *key = tile->keys.rows[tile->fetched], *value = tile->values.rows[tile->fetched++];
    for (long at = 0; at < row_size(&a->keys, a->key_dim); at += LINE) _mm_prefetch(key + at, _MM_HINT_T0);
    for (long at = 0; at < row_size(&a->values, a->value_dim); at += LINE) _mm_prefetch(value + at, _MM_HINT_T0);
}

static inline __attribute__((always_inline)) void score_rows(const int m, const struct attention *a, const float *q,
                                                             const float *keys, float *out, struct tile *next) {
    const long dim = a->key_dim;
    const int wide = SUMS_OF(m);
    for (long first = 0; first < KEY_TILE; first += wide * LANES) {
        floats sums[ROWS_AT_ONCE][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[i][j] = v_zero();
        for (long d = 0; d < dim; d++) {
            fetch_row(a, next);
            floats key[VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) key[j] = v_load(keys + d * KEY_TILE + first + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                floats value = v_all(q[i * dim + d]);
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++) sums[i][j] = v_fma(value, key[j], sums[i][j]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) v_store(out + i * KEY_TILE + first + j * LANES, sums[i][j]);
    }
}

/* Of the columns from `at` on as many as `wide` vectors have, all there if `whole`, else the first of them: see `add_rows`. */
static inline __attribute__((always_inline)) void add_columns(const int m, const int wide, const int whole,
                                                              const float *weights, const float *factor,
                                                              const float *const rows[KEY_TILE], long count, long dim,
                                                              long at, float *out) {
    mask inside[VECTORS];
    floats sums[ROWS_AT_ONCE][VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < wide; j++) inside[j] = whole ? 0xffff : lanes(dim - at - j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) {
            floats before = v_load_some(inside[j], out + i * dim + at + j * LANES);
            sums[i][j] = v_mul(before, v_all(factor[i]));
        }
    for (long key = 0; key < count; key++) {
        floats value[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) value[j] = v_load_some(inside[j], rows[key] + at + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            floats weight = v_all(weights[i * KEY_TILE + key]);
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[i][j] = v_fma(weight, value[j], sums[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) v_store_some(inside[j], out + i * dim + at + j * LANES, sums[i][j]);
}

/* out[m, dim] = out * factor + weights[m, KEY_TILE] @ the first `count` of `rows` [count, dim]. */
static inline __attribute__((always_inline)) void add_rows(
    const int m, const float *weights, const float *factor, const float *const rows[KEY_TILE], long count, long dim, float *out) {
    const int wide = SUMS_OF(m);
    long at = 0;
    for (; at + wide * LANES <= dim; at += wide * LANES)
        add_columns(m, wide, 1, weights, factor, rows, count, dim, at, out);
    if (at < dim) add_columns(m, wide, 0, weights, factor, rows, count, dim, at, out);
}

/* Scores of one row and tile become weights against its highest score so far; returns what the sums so far shrink by.
 * Of the tile's keys those from `from` to `to` are seen. */
static float weigh(float *scores, long from, long to, float softcap, float *highest, float *sum) {
    floats score[VECTORS], tile_highest = v_all(-INFINITY), hidden = v_all(-INFINITY);
    int is_number = 1;
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
        mask seen = lanes(to - j * LANES) & ~lanes(from - j * LANES);
        floats value = v_load(scores + j * LANES);
        if (softcap != 0) {
            floats cap = v_all(softcap);
            value = v_mul(hyperbolic_tangent(v_div(value, cap)), cap);
        }
        score[j] = v_choose(seen, value, hidden);
        is_number &= !v_not_numbers(score[j]);
        tile_highest = v_max(tile_highest, score[j]);
    }
    float best = is_number ? v_highest(tile_highest) : NAN;
    best = *highest > best ? *highest : best; /* NaN once is NaN for good */
    float factor = 1.0f;
    floats total = v_zero();
    if (best == -INFINITY) {
        /* Nothing is seen yet. */
        memset(scores, 0, KEY_TILE * sizeof *scores);
        return factor;
    }
    if (best != *highest) factor = v_first(exponential(v_all(*highest - best)));
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
        floats weight = exponential(v_sub(score[j], v_all(best)));
        v_store(scores + j * LANES, weight);
        total = v_add(total, weight);
    }
    *highest = best;
    *sum = *sum * factor + v_sum(total);
    return factor;
}

static void attend_piece(const void *context, long index) {
    const struct work *work = context;
    const struct attention *a = work->attention;
    const struct piece *piece = work->pieces + index;
    const struct span *span = piece->span;
    const long dim = a->key_dim, value_dim = a->value_dim, count = piece->count, groups = a->heads / a->kv_heads;
    float queries[MOST_ROWS * MOST_HEAD_DIM], sums[MOST_ROWS * MOST_HEAD_DIM];
    float keys[MOST_HEAD_DIM * KEY_TILE] __attribute__((aligned(64))), scores[MOST_ROWS * KEY_TILE] __attribute__((aligned(64)));
    float made[KEY_TILE * MOST_HEAD_DIM];
    const float *rows[KEY_TILE];
    float highest[MOST_ROWS], sum[MOST_ROWS], factor[MOST_ROWS];
    long position[MOST_ROWS], seen[MOST_ROWS];

    for (long r = 0; r < count; r++) {
        long row = (piece->first + r) / groups, head = piece->kv_head * groups + (piece->first + r) % groups;
        const float *query = a->query + (span->row + row) * a->query_row + head * a->query_head;
        for (long d = 0; d < dim; d++) queries[r * dim + d] = query[d] * a->scaling;
        position[r] = span->first_position + row;
        highest[r] = a->sinks ? a->sinks[head] : -INFINITY;
        sum[r] = a->sinks ? 1.0f : 0.0f;
    }
    memset(sums, 0, count * value_dim * sizeof *sums);
    memset(keys, 0, dim * KEY_TILE * sizeof *keys);

    struct tile tiles[2], *tile = tiles, *next = tiles + 1;
    find_tile(a, piece, first_tile(a, piece), next);
    for (long start = first_tile(a, piece); start <= position[count - 1]; start += KEY_TILE) {
        struct tile *done = tile;
        tile = next;
        next = done;
        next->count = next->fetched = 0;
        if (start + KEY_TILE <= position[count - 1]) {
            find_tile(a, piece, start + KEY_TILE, next);
        } else if (index + work->threads < work->num_pieces) {
            find_tile(a, piece + work->threads, first_tile(a, piece + work->threads), next);
        }
        as_floats(&a->keys, &tile->keys, tile->count, dim, made, rows);
        load_keys(rows, tile->count, dim, keys);
        for (long r = 0; r < count; r += ROWS_AT_ONCE) {
            const float *q = queries + r * dim;
            float *out = scores + r * KEY_TILE;
            switch (at_most(count - r, ROWS_AT_ONCE)) {
                case 1: score_rows(1, a, q, keys, out, next); break;
                case 2: score_rows(2, a, q, keys, out, next); break;
                case 3: score_rows(3, a, q, keys, out, next); break;
                case 4: score_rows(4, a, q, keys, out, next); break;
#if ROWS_AT_ONCE > 4
                case 5: score_rows(5, a, q, keys, out, next); break;
                case 6: score_rows(6, a, q, keys, out, next); break;
#endif
            }
        }
        for (long r = 0; r < count; r++) {
            seen[r] = position[r] + 1 <= start ? 0 : at_most(position[r] + 1 - start, KEY_TILE);
            long from = a->window ? position[r] + 1 - a->window - start : 0;
            factor[r] = weigh(scores + r * KEY_TILE, from, seen[r], a->softcap, highest + r, sum + r);
        }
        as_floats(&a->values, &tile->values, tile->count, value_dim, made, rows);
        for (long r = 0; r < count; r += ROWS_AT_ONCE) {
            const long m = at_most(count - r, ROWS_AT_ONCE), most = seen[r + m - 1];
            const float *weights = scores + r * KEY_TILE;
            float *out = sums + r * value_dim;
            switch (m) {
                case 1: add_rows(1, weights, factor + r, rows, most, value_dim, out); break;
                case 2: add_rows(2, weights, factor + r, rows, most, value_dim, out); break;
                case 3: add_rows(3, weights, factor + r, rows, most, value_dim, out); break;
                case 4: add_rows(4, weights, factor + r, rows, most, value_dim, out); break;
#if ROWS_AT_ONCE > 4
                case 5: add_rows(5, weights, factor + r, rows, most, value_dim, out); break;
                case 6: add_rows(6, weights, factor + r, rows, most, value_dim, out); break;
#endif
            }
        }
    }
    for (long r = 0; r < count; r++) {
        long row = (piece->first + r) / groups, head = piece->kv_head * groups + (piece->first + r) % groups;
        float *out = a->out + (span->row + row) * a->out_row + head * value_dim;
        for (long d = 0; d < value_dim; d++) out[d] = sums[r * value_dim + d] / sum[r];
    }
}

void attend(const struct attention *a, int threads) {
    long groups = a->heads / a->kv_heads, num_pieces = 0;
    for (long i = 0; i < a->num_spans; i++)
        num_pieces += (a->spans[i].count * groups + MOST_ROWS - 1) / MOST_ROWS * a->kv_heads;
    struct piece *pieces = malloc((num_pieces + 1) * sizeof *pieces), *next = pieces;
    if (!pieces) abort();
    for (long i = 0; i < a->num_spans; i++) {
        long rows = a->spans[i].count * groups;
        for (long head = 0; head < a->kv_heads; head++)
            for (long first = 0; first < rows; first += MOST_ROWS)
                *next++ = (struct piece){a->spans + i, head, first, at_most(rows - first, MOST_ROWS)};
    }
    struct work work = {a, pieces, num_pieces, threads};
    run_parallel(attend_piece, &work, num_pieces, threads);
    free(pieces);
}

void penstock_attend(const struct attention *attention, int threads) { attend(attention, threads); }
