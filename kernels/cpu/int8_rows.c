/* W8A8 products of a few rows, with AVX-512 VNNI: quantizes the rows, multiplies, scales. Bit for bit what
 * `int8_matmul.py` computes with torch's operators: the sums are exact integers, and every float operation is the same one in
 * the same order, compiled without contraction.
 *
 * Activations are made unsigned by adding 128, since VNNI multiplies unsigned by signed bytes; 128 times a weight row's sum
 * is taken off again. Those sums may wrap around in between: the true one fits.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

enum { VECTOR = 64, MOST_ROWS = 8 };

static float quantize(const float *x, long k, uint8_t *out) {
    __m512 highest = _mm512_setzero_ps(), finite = _mm512_setzero_ps();
    for (long at = 0; at < k; at += 16) {
        __mmask16 inside = k - at >= 16 ? 0xffff : (__mmask16)((1u << (k - at)) - 1);
        __m512 value = _mm512_maskz_loadu_ps(inside, x + at);
        highest = _mm512_max_ps(highest, _mm512_abs_ps(value));
        finite = _mm512_add_ps(finite, _mm512_mul_ps(value, _mm512_setzero_ps()));
    }
    float absmax = _mm512_reduce_max_ps(highest);
    float scale = (absmax > 1e-12f ? absmax : 1e-12f) / 127.0f;
    __m512 divisor = _mm512_set1_ps(scale);
    for (long at = 0; at < k; at += 16) {
        __mmask16 inside = k - at >= 16 ? 0xffff : (__mmask16)((1u << (k - at)) - 1);
        __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(inside, x + at), divisor);
        __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(128));
        _mm_mask_storeu_epi8(out + at, inside, _mm512_cvtepi32_epi8(rounded));
    }
    /* A row with NaN or infinity is NaN, as its products are. */
    return scale + _mm512_reduce_add_ps(finite);
}

/* `m` rows of x by `n` rows of w, both compile-time constants: m * n sums in registers. */
static inline __attribute__((always_inline)) void block(
    const int m, const int n, const uint8_t *x, long stride, const float *act_scale, const int8_t *w, long k,
    const int32_t *offsets, const float *weight_scale, const float *bias, float *y, long columns) {
    __m512i sums[8][8];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) sums[i][j] = _mm512_setzero_si512();
    for (long at = 0; at < k; at += VECTOR) {
        __mmask64 inside = k - at >= VECTOR ? ~0ull : (1ull << (k - at)) - 1;
        __m512i rows[8];
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) rows[j] = _mm512_maskz_loadu_epi8(inside, w + j * k + at);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            __m512i values = _mm512_loadu_si512(x + i * stride + at);
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], values, rows[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) {
            uint32_t sum = (uint32_t)_mm512_reduce_add_epi32(sums[i][j]) - (uint32_t)offsets[j];
            float value = (float)(int32_t)sum * weight_scale[j];
            value *= act_scale[i];
            if (bias) value += bias[j];
            y[i * columns + j] = value;
        }
}

#define ROWS_OF(M, N)                                                                                            \
    for (; j + N <= stop; j += N)                                                                                \
        block(M, N, x, stride, act_scale, w + j * k, k, offsets + j, weight_scale + j, bias ? bias + j : 0,      \
              y + j, columns);

#define CASE(M, N)                                                                                               \
    case M:                                                                                                      \
        ROWS_OF(M, N)                                                                                            \
        ROWS_OF(M, 1)                                                                                            \
        break;

static void multiply(int m, const uint8_t *x, long stride, const float *act_scale, const int8_t *w, long k,
                     const int32_t *offsets, const float *weight_scale, const float *bias, float *y, long columns,
                     long start, long stop) {
    long j = start;
    switch (m) {
        CASE(1, 8)
        CASE(2, 4)
        CASE(3, 4)
        CASE(4, 4)
        CASE(5, 4)
        CASE(6, 4)
        CASE(7, 2)
        CASE(8, 2)
    }
}

/* x [rows, k] float, w [columns, k] int8, offsets [columns]: 128 times the sum of each row of w, weight_scale [columns], bias
 * [columns] or null -> y [rows, columns]. `scratch` has room for rows * (k rounded up to 64) bytes, `act_scale` for rows. */
void penstock_int8_rows(const float *x, long rows, long k, const int8_t *w, long columns, const int32_t *offsets,
                        const float *weight_scale, const float *bias, float *y, uint8_t *scratch, float *act_scale,
                        int threads) {
    long stride = (k + VECTOR - 1) / VECTOR * VECTOR, pieces = (columns + 127) / 128;
    for (long i = 0; i < rows; i++) act_scale[i] = quantize(x + i * k, k, scratch + i * stride);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long piece = 0; piece < pieces; piece++) {
        long start = piece * 128, stop = start + 128 < columns ? start + 128 : columns;
        for (long i = 0; i < rows; i += MOST_ROWS) {
            int m = rows - i < MOST_ROWS ? (int)(rows - i) : MOST_ROWS;
            multiply(m, scratch + i * stride, stride, act_scale + i, w, k, offsets, weight_scale, bias,
                     y + i * columns, columns, start, stop);
        }
    }
}
