/* Sixteen lanes in two registers of AVX2. */

typedef struct {
    __m256 low, high;
} floats;
typedef struct {
    __m256i low, high;
} integers;

/* How many of them the registers hold. */
enum { HELD = 8 };
/* Rows that are multiplied at once, and how many sums side by side the registers then hold of each: 8 to 12 registers of them,
 * for as many products are under way at a time. */
#define ROWS_AT_ONCE 6
#define SUMS_OF(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)

/* Eight lanes, each all ones where its bit is set. */
static inline __m256i spread_mask(int bits) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), own), own);
}

static inline floats v_zero(void) { return (floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline floats v_all(float x) { return (floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline floats v_load(const float *from) { return (floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
static inline void v_store(float *to, floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}

/* Lanes that are not `some` are zeros, and their memory is not touched. */
static inline floats v_load_some(mask some, const float *from) {
    if (some == 0xffff) return v_load(from);
    return (floats){_mm256_maskload_ps(from, spread_mask(some)), _mm256_maskload_ps(from + 8, spread_mask(some >> 8))};
}
static inline void v_store_some(mask some, float *to, floats x) {
    if (some == 0xffff) return v_store(to, x); /* a store under a mask takes some chips tens of times as long */
    _mm256_maskstore_ps(to, spread_mask(some), x.low);
    _mm256_maskstore_ps(to + 8, spread_mask(some >> 8), x.high);
}

/* bfloat16. */
static inline floats v_load_halves(mask some, const uint16_t *from) {
    uint16_t halves[LANES] = {0};
    memcpy(halves, from, some == 0xffff ? sizeof halves : __builtin_popcount(some) * sizeof *halves);
    __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)halves));
    __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(halves + 8)));
    return (floats){_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}

static inline floats v_add(floats a, floats b) { return (floats){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline floats v_sub(floats a, floats b) { return (floats){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline floats v_mul(floats a, floats b) { return (floats){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline floats v_div(floats a, floats b) { return (floats){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
static inline floats v_fma(floats a, floats b, floats c) {
    return (floats){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline floats v_less_product(floats a, floats b, floats c) { /* c - a * b */
    return (floats){_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
static inline floats v_abs(floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (floats){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

/* Where one of two is NaN, the second. */
static inline floats v_max(floats a, floats b) { return (floats){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
static inline floats v_min(floats a, floats b) { return (floats){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

static inline floats v_nearest(floats x) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (floats){_mm256_round_ps(x.low, NEAREST), _mm256_round_ps(x.high, NEAREST)};
}

/* x * 2^n, for x near 1 and whole n from -250 to 254: in two steps, of which the first is exact, so that the result is rounded
 * once where it is denormal. */
static inline __m256 scale_half(__m256 x, __m256 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i whole = _mm256_cvtps_epi32(n), first = _mm256_srai_epi32(whole, 1), second = _mm256_sub_epi32(whole, first);
    x = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23)));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23)));
}
static inline floats v_scale(floats x, floats n) { return (floats){scale_half(x.low, n.low), scale_half(x.high, n.high)}; }

/* Of `a` where `some`, else of `b`. */
static inline floats v_choose(mask some, floats a, floats b) {
    if (some == 0xffff) return a;
    const __m256 low = _mm256_castsi256_ps(spread_mask(some)), high = _mm256_castsi256_ps(spread_mask(some >> 8));
    return (floats){_mm256_blendv_ps(b.low, a.low, low), _mm256_blendv_ps(b.high, a.high, high)};
}
static inline mask joined(__m256 low, __m256 high) { return _mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8; }
static inline mask v_not_numbers(floats x) {
    return joined(_mm256_cmp_ps(x.low, x.low, _CMP_UNORD_Q), _mm256_cmp_ps(x.high, x.high, _CMP_UNORD_Q));
}
static inline mask v_equal(floats a, floats b) {
    return joined(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ));
}

/* Halves are added to each other, then their halves, and so on. */
static inline float v_sum(floats x) {
    __m256 eight = _mm256_add_ps(x.high, x.low);
    __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float v_highest(floats x) {
    __m256 eight = _mm256_max_ps(x.high, x.low);
    __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline float v_first(floats x) { return _mm256_cvtss_f32(x.low); }

static inline integers v_no_integers(void) { return (integers){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline integers v_all_integers(int32_t x) { return (integers){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline integers v_load_integers(mask some, const void *from) {
    floats bits = v_load_some(some, from);
    return (integers){_mm256_castps_si256(bits.low), _mm256_castps_si256(bits.high)};
}
static inline void v_store_integers(void *to, integers x) {
    _mm256_storeu_si256(to, x.low);
    _mm256_storeu_si256((__m256i *)to + 1, x.high);
}
static inline integers v_add_integers(integers a, integers b) {
    return (integers){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
static inline integers v_sub_integers(integers a, integers b) {
    return (integers){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
static inline int32_t v_sum_integers(integers x) {
    __m256i eight = _mm256_add_epi32(x.low, x.high);
    __m128i four = _mm_add_epi32(_mm256_extracti128_si256(eight, 1), _mm256_castsi256_si128(eight));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

/* To the nearest, halves to even. */
static inline integers v_round(floats x) { return (integers){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
static inline floats v_to_floats(integers x) { return (floats){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

/* As sixteen-bit integers in order. */
static inline __m256i narrowed(integers x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8); }

/* As bytes, of which the first `count` are stored. */
static inline void v_store_bytes(int8_t *to, integers x, long count) {
    __m256i halves = narrowed(x);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    memcpy(to, &bytes, count < LANES ? count : LANES);
}

/* The first `count` bytes of 64; the others are zeros. */
static inline integers v_load_bytes(const int8_t *from, long count) {
    integers bytes = v_no_integers();
    memcpy(&bytes, from, count < (long)sizeof bytes ? count : (long)sizeof bytes);
    return bytes;
}

/* The first `count` of sixteen bytes, each as a number; the others are zeros. */
static inline floats v_from_bytes(const int8_t *from, long count) {
    __m128i bytes = _mm_setzero_si128();
    if (count >= LANES)
        bytes = _mm_loadu_si128((const __m128i *)from);
    else
        memcpy(&bytes, from, count);
    __m256i low = _mm256_cvtepi8_epi32(bytes), high = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
    return v_to_floats((integers){low, high});
}

/* Eight rows of eight become columns. */
static inline void transpose_quarter(__m256i r[8]) {
    __m256i t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
    }
}

/* Sixteen rows of sixteen become columns. */
static inline void transpose(integers r[16]) {
    __m256i quarters[4][8]; /* upper left, upper right, lower left, lower right */
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        quarters[0][i] = r[i].low;
        quarters[1][i] = r[i].high;
        quarters[2][i] = r[8 + i].low;
        quarters[3][i] = r[8 + i].high;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) transpose_quarter(quarters[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = (integers){quarters[0][i], quarters[2][i]};
        r[8 + i] = (integers){quarters[1][i], quarters[3][i]};
    }
}

/* Of the first `count` of sixteen rows the floats from `at` on, the first `width` of sixteen, as columns: each to a row of `out`,
 * `stride` apart. The columns of rows that are missing are zeros. A quarter at a time, which the registers hold. */
static inline void load_columns(const float *const rows[], long count, long at, long width, float *out, long stride) {
    for (int row = 0; row < LANES; row += 8)
        for (int column = 0; column < LANES && column < width; column += 8) {
            __m256i quarter[8];
            const __m256i inside = spread_mask(lanes(width - column));
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const float *from = rows[row + i] + at + column;
                quarter[i] = row + i >= count         ? _mm256_setzero_si256()
                             : width - column >= 8 ? _mm256_loadu_si256((const __m256i *)from)
                                                   : _mm256_maskload_epi32((const int *)from, inside);
            }
            transpose_quarter(quarter);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                if (column + i < width) _mm256_storeu_si256((__m256i *)(out + (column + i) * stride + row), quarter[i]);
        }
}
