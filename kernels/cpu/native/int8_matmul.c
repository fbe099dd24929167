/* W8A8 products. Bit for bit what `int8_matmul.py` computes with torch's operators: the sums are exact
 * integers, and every float operation is the same one in the same order, compiled without contraction.
 */

#include <string.h>

#include "penstock.h"

enum { VECTORS = PANEL / LANES, PANEL_LINES = PANEL * STEP / 64 };
/* A piece of work is a panel and all rows, or a part of them where threads would not have so many pieces each. */
enum { PIECES_PER_THREAD = 4, LEAST_PIECE_ROWS = 32 };

long padded(long k) { return (k + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT; }

long activation_bytes(long rows, long k) {
    return padded(rows * (padded(k) * sizeof(factor) + 2 * sizeof(float) + sizeof(int32_t)));
}

struct activations activations_in(char *scratch, long rows, long k) {
    factor *values = (factor *)scratch;
    float *scale = (float *)(values + rows * padded(k));
    return (struct activations){values, padded(k), scale, scale + rows, (int32_t *)(scale + 2 * rows)};
}

static long at_most(long value, long limit) { return value < limit ? value : limit; }
static long ceil_div(long a, long b) { return (a + b - 1) / b; }
static long panels_of(long n) { return ceil_div(n, PANEL); }
static long steps_of(long k) { return ceil_div(k, STEP); }

struct packing {
    const int8_t *weight;
    uint8_t *packed;
    long n, k;
};

/* One panel: of its rows the bytes of a step stand side by side, for each step in turn. */
static void pack_panel(const void *context, long panel) {
    const struct packing *p = context;
    long steps = steps_of(p->k);
    for (int part = 0; part < VECTORS; part++) {
        long first = panel * PANEL + part * LANES;
        for (long s = 0; s < steps; s += LANES) {
            long bytes = at_most(p->k - s * STEP, 64);
            integers rows[16];
            for (int i = 0; i < LANES; i++) {
                int exists = first + i < p->n;
                const int8_t *from = p->weight + (first + i) * p->k + s * STEP;
                rows[i] = as_weights(exists ? v_load_bytes(from, bytes) : v_no_integers());
            }
            transpose(rows);
            uint8_t *to = p->packed + (panel * steps + s) * PANEL * STEP + part * 64;
            for (int i = 0; i < at_most(steps - s, LANES); i++) v_store_integers(to + i * PANEL * STEP, rows[i]);
        }
    }
}

long penstock_packed_bytes(long n, long k) { return panels_of(n) * PANEL * steps_of(k) * STEP; }

/* weight [n, k] int8 -> `packed`, penstock_packed_bytes, aligned to 64. */
void penstock_pack(const int8_t *weight, long n, long k, uint8_t *packed, int threads) {
    struct packing packing = {weight, packed, n, k};
    run_parallel(pack_panel, &packing, panels_of(n), threads);
}

struct quantizing {
    const void *weight;
    int is_bfloat16;
    long n, k;
    int8_t *out;
    float *scale;
};

/* Sixteen weights from element `at` on. */
static inline floats load_floats(const struct quantizing *q, mask inside, long at) {
    if (!q->is_bfloat16) return v_load_some(inside, (const float *)q->weight + at);
    return v_load_halves(inside, (const uint16_t *)q->weight + at);
}

static void quantize_weight_rows(const void *context, long piece) {
    const struct quantizing *q = context;
    for (long row = piece * PANEL; row < at_most(piece * PANEL + PANEL, q->n); row++) {
        floats highest = v_zero(), finite = v_zero();
        for (long at = 0; at < q->k; at += LANES) {
            floats value = load_floats(q, lanes(q->k - at), row * q->k + at);
            highest = v_max(highest, v_abs(value));
            finite = v_add(finite, v_mul(value, v_zero()));
        }
        float absmax = v_highest(highest);
        float scale = (absmax > 1e-12f ? absmax : 1e-12f) / 127.0f;
        floats divisor = v_all(scale);
        for (long at = 0; at < q->k; at += LANES) {
            mask inside = lanes(q->k - at);
            floats value = load_floats(q, inside, row * q->k + at);
            v_store_bytes(q->out + row * q->k + at, v_round(v_div(value, divisor)), q->k - at);
        }
        q->scale[row] = scale + v_sum(finite); /* NaN for a broken row */
    }
}

/* weight [n, k] float32 or bfloat16 -> out [n, k] int8, scale [n]: symmetric, to the nearest. */
void penstock_quantize_weight(const void *weight, int is_bfloat16, long n, long k, int8_t *out, float *scale, int threads) {
    struct quantizing quantizing = {weight, is_bfloat16, n, k, out, scale};
    run_parallel(quantize_weight_rows, &quantizing, panels_of(n), threads);
}

void quantize_row(const float *x, long k, const struct activations *out, long row) {
    factor *to = out->values + row * out->stride;
    floats highest = v_zero(), lowest = v_zero(), finite = v_zero();
    for (long at = 0; at < k; at += LANES) {
        floats value = v_load_some(lanes(k - at), x + at);
        highest = v_max(highest, value);
        lowest = v_min(lowest, value);
        finite = v_add(finite, v_mul(value, v_zero()));
    }
    float low = -v_highest(v_sub(v_zero(), lowest));
    float scale = (v_highest(highest) - low) / 255.0f;
    scale = scale > 1e-14f ? scale : 1e-14f;
    float zero = -128.0f - v_first(v_nearest(v_all(low / scale)));
    floats divisor = v_all(scale);
    integers sum = v_no_integers();
    for (long at = 0; at < out->stride; at += LANES) {
        mask inside = lanes(k - at);
        floats shift = v_choose(inside, v_all(zero), v_zero()); /* behind the row there are zeros */
        floats steps = v_add(v_div(v_load_some(inside, x + at), divisor), shift);
        integers rounded = v_round(v_min(steps, v_all(127.0f)));
        sum = v_add_integers(sum, rounded);
        store_factors(to + at, rounded);
    }
    /* A row with NaN or infinity is NaN, as its products are. */
    out->scale[row] = scale + v_sum(finite);
    out->zero[row] = zero;
    out->sum[row] = v_sum_integers(sum);
}

struct product {
    const struct activations *x;
    const struct matrix *weight;
    const float *residual;
    float *y;
    long rows, row_pieces, panels;
};

/* `m` rows by one panel, while for each step `lines` cache lines are fetched from `ahead` on. Both are compile-time constants. */
static inline __attribute__((always_inline)) void multiply_rows(const int m, const int lines, const struct product *p, long row,
                                                                long panel, const uint8_t *ahead) {
    const struct matrix *w = p->weight;
    long steps = steps_of(w->k), stride = p->x->stride;
    const uint8_t *weights = w->packed + panel * steps * PANEL * STEP;
    const factor *x = p->x->values + row * stride;
    integers sums[SHARING_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sums[i][j] = v_no_integers();
    for (long s = 0; s < steps; s++) {
#pragma GCC unroll 8
        for (int line = 0; line < lines; line++) _mm_prefetch((const char *)ahead + (s * lines + line) * 64, _MM_HINT_T1);
        weight_step values[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) values[j] = load_weights(weights + s * PANEL * STEP + j * 64);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            activation_step four = load_activation(x + i * stride + s * STEP);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) add_products(&sums[i][j], values[j], four);
        }
    }
    /* What is the same for all rows is loaded once: a store to y might change it, for all the compiler knows. */
    const long n = w->n;
    const float *bias = w->bias, *residual = p->residual;
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) {
        const long column = panel * PANEL + j * LANES;
        const mask inside = lanes(n - column);
        const floats scale = v_load_some(inside, w->scale + column);
        const floats added = bias ? v_load_some(inside, bias + column) : v_zero();
        const floats sum = w->sum ? v_load_some(inside, w->sum + column) : v_zero();
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const long at = (row + i) * n + column;
            integers offset = v_all_integers((int32_t)(128u * (uint32_t)p->x->sum[row + i]));
            floats value = v_to_floats(v_sub_integers(sums[i][j], offset));
            value = v_sub(v_mul(value, scale), v_mul(v_all(p->x->zero[row + i]), sum));
            value = v_mul(value, v_all(p->x->scale[row + i]));
            if (bias) value = v_add(value, added);
            if (residual) value = v_add(value, v_load_some(inside, residual + at));
            v_store_some(inside, p->y + at, value);
        }
    }
}

static inline __attribute__((always_inline)) void multiply_some(long m, const int lines, const struct product *p, long row,
                                                                long panel, const uint8_t *ahead) {
    switch (m) {
        case 1: multiply_rows(1, lines, p, row, panel, ahead); break;
        case 2: multiply_rows(2, lines, p, row, panel, ahead); break;
        case 3: multiply_rows(3, lines, p, row, panel, ahead); break;
        case 4: multiply_rows(4, lines, p, row, panel, ahead); break;
#if SHARING_ROWS > 4
        case 5: multiply_rows(5, lines, p, row, panel, ahead); break;
        case 6: multiply_rows(6, lines, p, row, panel, ahead); break;
#endif
    }
}

/* Rows are multiplied by a panel in passes. Meanwhile the next panel is fetched, as evenly as a step's lines divide among them.
 * A single pass streams what it reads, which the machine foresees. */
_Static_assert(PANEL_LINES <= 4, "of two passes or more, none fetches more than two lines");
static void multiply_panel(const struct product *p, long panel, long row, long stop) {
    const long panel_bytes = steps_of(p->weight->k) * PANEL * STEP, passes = ceil_div(stop - row, SHARING_ROWS);
    const uint8_t *next = p->weight->packed + (panel + 1) * panel_bytes;
    const int fetches = passes > 1 && panel + 1 < p->panels;
    for (long pass = 0; pass < passes; pass++) {
        const long fetched = PANEL_LINES * pass / passes, lines = fetches ? PANEL_LINES * (pass + 1) / passes - fetched : 0;
        const uint8_t *ahead = next + fetched * (panel_bytes / PANEL_LINES);
        const long m = ceil_div(stop - row, passes - pass); /* of nearly equal size: 8 rows are 4 and 4, not 6 and 2 */
        switch (lines) {
            case 0: multiply_some(m, 0, p, row, panel, ahead); break;
            case 1: multiply_some(m, 1, p, row, panel, ahead); break;
            case 2: multiply_some(m, 2, p, row, panel, ahead); break;
        }
        row += m;
    }
}

static void multiply_piece(const void *context, long index) {
    const struct product *p = context;
    const long panel = index / p->row_pieces, part = index % p->row_pieces;
    multiply_panel(p, panel, part * p->rows / p->row_pieces, (part + 1) * p->rows / p->row_pieces);
}

void multiply(const struct activations *x, long rows, const struct matrix *weight, const float *residual, float *y,
              int threads) {
    const long panels = panels_of(weight->n), parts = at_most(ceil_div(PIECES_PER_THREAD * threads, panels), rows / LEAST_PIECE_ROWS);
    struct product product = {x, weight, residual, y, rows, parts > 1 ? parts : 1, panels};
    run_parallel(multiply_piece, &product, product.row_pieces * panels, threads);
}

struct rows {
    const float *x;
    long k;
    const struct activations *out;
};

static void quantize_piece(const void *context, long row) {
    const struct rows *rows = context;
    quantize_row(rows->x + row * rows->k, rows->k, rows->out, row);
}

/* Of each row of `weight`, whose own `sum` is null: what a row of ones multiplied with it gives. `scratch` as for one row. */
void penstock_sum_rows(const struct matrix *weight, float *sums, char *scratch, int threads) {
    struct activations ones = activations_in(scratch, 1, weight->k);
    for (long at = 0; at < ones.stride; at++) ones.values[at] = at < weight->k;
    *ones.scale = 1.0f;
    *ones.zero = 0.0f;
    *ones.sum = (int32_t)weight->k;
    multiply(&ones, 1, weight, 0, sums, threads);
}

long penstock_product_scratch(long rows, long k) { return activation_bytes(rows, k); }

/* x [rows, k] float, bias [n] or null -> y [rows, n] float. `scratch`: penstock_product_scratch bytes, aligned to 64. */
void penstock_int8_matmul(const float *x, long rows, const struct matrix *weight, const float *bias, float *y, char *scratch,
                          int threads) {
    struct matrix with_bias = *weight;
    with_bias.bias = bias;
    struct activations activations = activations_in(scratch, rows, weight->k);
    struct rows context = {x, weight->k, &activations};
    run_parallel(quantize_piece, &context, rows, rows * weight->k < 1 << 15 ? 1 : threads);
    multiply(&activations, rows, &with_bias, 0, y, threads);
}
