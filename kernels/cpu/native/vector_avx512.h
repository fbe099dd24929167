/* Sixteen lanes in one register of AVX-512. */

typedef __m512 floats;
typedef __m512i integers;

/* How many of them the registers hold. */
enum { HELD = 32 };
/* Rows that are multiplied at once, and how many sums side by side the registers then hold of each. */
#define ROWS_AT_ONCE 4
#define SUMS_OF(rows) 4

static inline floats v_zero(void) { return _mm512_setzero_ps(); }
static inline floats v_all(float x) { return _mm512_set1_ps(x); }
static inline floats v_load(const float *from) { return _mm512_loadu_ps(from); }
static inline void v_store(float *to, floats x) { _mm512_storeu_ps(to, x); }

/* Lanes that are not `some` are zeros, and their memory is not touched. */
static inline floats v_load_some(mask some, const float *from) { return _mm512_maskz_loadu_ps(some, from); }
static inline void v_store_some(mask some, float *to, floats x) { _mm512_mask_storeu_ps(to, some, x); }

/* bfloat16. */
static inline floats v_load_halves(mask some, const uint16_t *from) {
    __m256i halves = _mm256_maskz_loadu_epi16(some, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline floats v_add(floats a, floats b) { return _mm512_add_ps(a, b); }
static inline floats v_sub(floats a, floats b) { return _mm512_sub_ps(a, b); }
static inline floats v_mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
static inline floats v_div(floats a, floats b) { return _mm512_div_ps(a, b); }
static inline floats v_fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline floats v_less_product(floats a, floats b, floats c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
static inline floats v_abs(floats x) { return _mm512_abs_ps(x); }

/* Where one of two is NaN, the second. */
static inline floats v_max(floats a, floats b) { return _mm512_max_ps(a, b); }
static inline floats v_min(floats a, floats b) { return _mm512_min_ps(a, b); }

static inline floats v_nearest(floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }

/* x * 2^n, for whole n. */
static inline floats v_scale(floats x, floats n) { return _mm512_scalef_ps(x, n); }

/* Of `a` where `some`, else of `b`. */
static inline floats v_choose(mask some, floats a, floats b) { return _mm512_mask_blend_ps(some, b, a); }
static inline mask v_not_numbers(floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
static inline mask v_equal(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

/* Halves are added to each other, then their halves, and so on. */
static inline float v_sum(floats x) { return _mm512_reduce_add_ps(x); }
static inline float v_highest(floats x) { return _mm512_reduce_max_ps(x); }
static inline float v_first(floats x) { return _mm512_cvtss_f32(x); }

static inline integers v_no_integers(void) { return _mm512_setzero_si512(); }
static inline integers v_all_integers(int32_t x) { return _mm512_set1_epi32(x); }
static inline integers v_load_integers(mask some, const void *from) { return _mm512_maskz_loadu_epi32(some, from); }
static inline void v_store_integers(void *to, integers x) { _mm512_storeu_si512(to, x); }
static inline integers v_add_integers(integers a, integers b) { return _mm512_add_epi32(a, b); }
static inline integers v_sub_integers(integers a, integers b) { return _mm512_sub_epi32(a, b); }
static inline int32_t v_sum_integers(integers x) { return _mm512_reduce_add_epi32(x); }

/* To the nearest, halves to even. */
static inline integers v_round(floats x) { return _mm512_cvtps_epi32(x); }
static inline floats v_to_floats(integers x) { return _mm512_cvtepi32_ps(x); }

/* As bytes, of which the first `count` are stored. */
static inline void v_store_bytes(int8_t *to, integers x, long count) {
    _mm_mask_storeu_epi8(to, lanes(count), _mm512_cvtepi32_epi8(x));
}

/* The first `count` bytes of 64; the others are zeros. */
static inline integers v_load_bytes(const int8_t *from, long count) {
    return _mm512_maskz_loadu_epi8(count >= 64 ? ~0ull : (1ull << count) - 1, from);
}

/* The first `count` of sixteen bytes, each as a number; the others are zeros. */
static inline floats v_from_bytes(const int8_t *from, long count) {
    return v_to_floats(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes(count), from)));
}

/* Sixteen rows of sixteen become columns. */
static inline void transpose(integers r[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}

/* Of the first `count` of sixteen rows the floats from `at` on, the first `width` of sixteen, as columns: each to a row of `out`,
 * `stride` apart. The columns of rows that are missing are zeros. */
static inline void load_columns(const float *const rows[], long count, long at, long width, float *out, long stride) {
    integers block[LANES];
    for (int i = 0; i < LANES; i++) block[i] = i < count ? v_load_integers(lanes(width), rows[i] + at) : v_no_integers();
    transpose(block);
    for (int i = 0; i < LANES && i < width; i++) v_store_integers(out + i * stride, block[i]);
}
