/* W8A8 products with AVX-512 VNNI. Bit for bit what `int8_matmul.py` computes with torch's operators: the sums are exact
 * integers, and every float operation is the same one in the same order, compiled without contraction.
 *
 * VNNI multiplies unsigned by signed bytes, so a weight is stored with 128 added, and 128 times the sum of a row of activations is
 * taken off again. Sums may wrap around in between: the true one fits.
 */

#include <string.h>

#include "penstock.h"
#include "vector.h"

/* Rows that share what is loaded of a weight: 6 by 4 sums, 4 weights and an activation are 29 of 32 registers. */
enum { MOST_ROWS = 6, VECTORS = PANEL / LANES };
/* Rows of one piece of work; more are several pieces. */
enum { PIECE_ROWS = 96, MOST_PIECE_PANELS = 8 };

static long panels_of(long n) { return (n + PANEL - 1) / PANEL; }
static long steps_of(long k) { return (k + STEP - 1) / STEP; }
static long at_most(long value, long limit) { return value < limit ? value : limit; }

struct packing {
    const int8_t *weight;
    uint8_t *packed;
    long n, k;
};

/* One panel: the bytes 4s to 4s + 3 of its 64 rows stand side by side, for each step s in turn. */
static void pack_panel(const void *context, long panel) {
    const struct packing *p = context;
    long steps = steps_of(p->k);
    __m512i high = _mm512_set1_epi8((char)0x80);
    for (int part = 0; part < VECTORS; part++) {
        long first = panel * PANEL + part * LANES;
        for (long s = 0; s < steps; s += LANES) {
            long bytes = at_most(p->k - s * STEP, 64);
            __mmask64 inside = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
            __m512i rows[16];
            for (int i = 0; i < LANES; i++) {
                int exists = first + i < p->n;
                const int8_t *from = p->weight + (first + i) * p->k + s * STEP;
                rows[i] = exists ? _mm512_maskz_loadu_epi8(inside, from) : _mm512_setzero_si512();
                rows[i] = _mm512_xor_si512(rows[i], high);
            }
            transpose(rows);
            uint8_t *to = p->packed + (panel * steps + s) * PANEL * STEP + part * 64;
            for (int i = 0; i < at_most(steps - s, LANES); i++) _mm512_store_si512(to + i * PANEL * STEP, rows[i]);
        }
    }
}

/* weight [n, k] int8 -> `packed`: n rounded up to PANEL times k rounded up to STEP bytes, aligned to 64. */
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
static inline __m512 load_weights(const struct quantizing *q, __mmask16 inside, long at) {
    if (!q->is_bfloat16) return _mm512_maskz_loadu_ps(inside, (const float *)q->weight + at);
    __m256i halves = _mm256_maskz_loadu_epi16(inside, (const uint16_t *)q->weight + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static void quantize_weight_rows(const void *context, long piece) {
    const struct quantizing *q = context;
    for (long row = piece * PANEL; row < at_most(piece * PANEL + PANEL, q->n); row++) {
        __m512 highest = _mm512_setzero_ps(), finite = _mm512_setzero_ps();
        for (long at = 0; at < q->k; at += LANES) {
            __m512 value = load_weights(q, lanes(q->k - at), row * q->k + at);
            highest = _mm512_max_ps(highest, _mm512_abs_ps(value));
            finite = _mm512_add_ps(finite, _mm512_mul_ps(value, _mm512_setzero_ps()));
        }
        float absmax = _mm512_reduce_max_ps(highest);
        float scale = (absmax > 1e-12f ? absmax : 1e-12f) / 127.0f;
        __m512 divisor = _mm512_set1_ps(scale);
        for (long at = 0; at < q->k; at += LANES) {
            __mmask16 inside = lanes(q->k - at);
            __m512 value = load_weights(q, inside, row * q->k + at);
            __m512i rounded = _mm512_cvtps_epi32(_mm512_div_ps(value, divisor));
            _mm_mask_storeu_epi8(q->out + row * q->k + at, inside, _mm512_cvtepi32_epi8(rounded));
        }
        q->scale[row] = scale + _mm512_reduce_add_ps(finite); /* NaN for a broken row */
    }
}

/* weight [n, k] float32 or bfloat16 -> out [n, k] int8, scale [n]: symmetric, to the nearest. */
void penstock_quantize_weight(const void *weight, int is_bfloat16, long n, long k, int8_t *out, float *scale, int threads) {
    struct quantizing quantizing = {weight, is_bfloat16, n, k, out, scale};
    run_parallel(quantize_weight_rows, &quantizing, panels_of(n), threads);
}

void quantize_row(const float *x, long k, const struct activations *out, long row) {
    int8_t *to = out->values + row * out->stride;
    __m512 highest = _mm512_setzero_ps(), finite = _mm512_setzero_ps();
    for (long at = 0; at < k; at += LANES) {
        __m512 value = _mm512_maskz_loadu_ps(lanes(k - at), x + at);
        highest = _mm512_max_ps(highest, _mm512_abs_ps(value));
        finite = _mm512_add_ps(finite, _mm512_mul_ps(value, _mm512_setzero_ps()));
    }
    float absmax = _mm512_reduce_max_ps(highest);
    float scale = (absmax > 1e-12f ? absmax : 1e-12f) / 127.0f;
    __m512 divisor = _mm512_set1_ps(scale);
    __m512i sum = _mm512_setzero_si512();
    for (long at = 0; at < out->stride; at += LANES) {
        __mmask16 inside = lanes(k - at);
        __m512i rounded = _mm512_maskz_cvtps_epi32(inside, _mm512_div_ps(_mm512_maskz_loadu_ps(inside, x + at), divisor));
        sum = _mm512_add_epi32(sum, rounded);
        _mm_store_si128((__m128i *)(to + at), _mm512_cvtepi32_epi8(rounded));
    }
    /* A row with NaN or infinity is NaN, as its products are. */
    out->scale[row] = scale + _mm512_reduce_add_ps(finite);
    out->sum[row] = _mm512_reduce_add_epi32(sum);
}

/* sums += four products of a weight's unsigned bytes and an activation's signed ones. As the intrinsic, GCC 12 copies every sum
 * to and fro, and stores it, at each step. */
static inline __attribute__((always_inline)) void add_products(__m512i *sums, __m512i weights, __m512i activation) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sums) : "v"(weights), "v"(activation));
}

struct product {
    const struct activations *x;
    const struct matrix *weight;
    const float *residual;
    float *y;
    long rows, row_pieces, panels, piece_panels;
};

/* What to have on its way while rows are multiplied: `lines` cache lines for each step, from `from` on. */
struct ahead {
    const uint8_t *from;
    int lines;
};

/* `m` rows, a compile-time constant, by one panel. */
static inline __attribute__((always_inline)) void multiply_rows(const int m, const struct product *p, long row, long panel,
                                                                struct ahead ahead) {
    const struct matrix *w = p->weight;
    long steps = steps_of(w->k), stride = p->x->stride;
    const uint8_t *weights = w->packed + panel * steps * PANEL * STEP;
    const int8_t *x = p->x->values + row * stride;
    __m512i sums[MOST_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm512_setzero_si512();
    for (long s = 0; s < steps; s++) {
        for (int line = 0; line < ahead.lines; line++) _mm_prefetch((const char *)ahead.from + (s * ahead.lines + line) * 64, _MM_HINT_T1);
        __m512i values[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) values[j] = _mm512_load_si512(weights + s * PANEL * STEP + j * 64);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            int32_t four;
            memcpy(&four, x + i * stride + s * STEP, sizeof four);
            __m512i activation = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) add_products(&sums[i][j], values[j], activation);
        }
    }
    /* What is the same for all rows is loaded once: a store to y might change it, for all the compiler knows. */
    const long n = w->n;
    const float *bias = w->bias, *residual = p->residual;
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) {
        const long column = panel * PANEL + j * LANES;
        const __mmask16 inside = lanes(n - column);
        const __m512 scale = _mm512_maskz_loadu_ps(inside, w->scale + column);
        const __m512 added = bias ? _mm512_maskz_loadu_ps(inside, bias + column) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const long at = (row + i) * n + column;
            __m512i offset = _mm512_set1_epi32((int32_t)(128u * (uint32_t)p->x->sum[row + i]));
            __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][j], offset));
            value = _mm512_mul_ps(_mm512_mul_ps(value, scale), _mm512_set1_ps(p->x->scale[row + i]));
            if (bias) value = _mm512_add_ps(value, added);
            if (residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(inside, residual + at));
            _mm512_mask_storeu_ps(p->y + at, inside, value);
        }
    }
}

/* The first rows read the panel from memory, which foresees the end of it only; the others have it in cache, and time to fetch
 * the next one. */
static void multiply_panel(const struct product *p, long panel, long row, long stop, int fetches_next) {
    const long panel_bytes = steps_of(p->weight->k) * PANEL * STEP;
    const uint8_t *next = p->weight->packed + (panel + 1) * panel_bytes;
    const long passes = (stop - row + MOST_ROWS - 1) / MOST_ROWS;
    const int lines = passes > 4 ? 1 : passes > 2 ? 2 : 4;
    for (long pass = 0; row < stop; pass++) {
        struct ahead ahead = {next + (pass - 1) * panel_bytes * lines / 4, 0};
        if (fetches_next && pass > 0 && (pass - 1) * lines < 4) ahead.lines = lines;
        /* Blocks of nearly equal size: 8 rows are 4 and 4, not 6 and 2. */
        long blocks = (stop - row + MOST_ROWS - 1) / MOST_ROWS, m = (stop - row + blocks - 1) / blocks;
        switch (m) {
            case 1: multiply_rows(1, p, row, panel, ahead); break;
            case 2: multiply_rows(2, p, row, panel, ahead); break;
            case 3: multiply_rows(3, p, row, panel, ahead); break;
            case 4: multiply_rows(4, p, row, panel, ahead); break;
            case 5: multiply_rows(5, p, row, panel, ahead); break;
            case 6: multiply_rows(6, p, row, panel, ahead); break;
        }
        row += m;
    }
}

static void multiply_piece(const void *context, long index) {
    const struct product *p = context;
    long first = index / p->row_pieces * p->piece_panels, row = index % p->row_pieces * PIECE_ROWS;
    long last = at_most(first + p->piece_panels, p->panels), stop = at_most(row + PIECE_ROWS, p->rows);
    for (long panel = first; panel < last; panel++) multiply_panel(p, panel, row, stop, panel + 1 < last);
}

void multiply(const struct activations *x, long rows, const struct matrix *weight, const float *residual, float *y,
              int threads) {
    struct product product = {x, weight, residual, y, rows, (rows + PIECE_ROWS - 1) / PIECE_ROWS, panels_of(weight->n), 1};
    /* Neighbours belong to one piece, as long as there are enough pieces for all. */
    while (product.piece_panels < MOST_PIECE_PANELS && product.panels / product.piece_panels > 8 * threads) product.piece_panels *= 2;
    long pieces = (product.panels + product.piece_panels - 1) / product.piece_panels;
    run_parallel(multiply_piece, &product, pieces * product.row_pieces, threads);
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

/* x [rows, k] float, bias [n] or null -> y [rows, n] float. `scratch`: rows times (k rounded up to 64, plus 8) bytes, aligned
 * to 64. */
void penstock_int8_matmul(const float *x, long rows, const struct matrix *weight, const float *bias, float *y, int8_t *scratch,
                          int threads) {
    struct matrix with_bias = *weight;
    with_bias.bias = bias;
    long stride = (weight->k + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
    float *scale = (float *)(scratch + rows * stride);
    struct activations activations = {scratch, stride, scale, (int32_t *)(scale + rows)};
    struct rows context = {x, weight->k, &activations};
    run_parallel(quantize_piece, &context, rows, rows * weight->k < 1 << 15 ? 1 : threads);
    multiply(&activations, rows, &with_bias, 0, y, threads);
}
