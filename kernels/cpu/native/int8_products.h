/* Products of bytes and their exact sums: what a weight and an activation look like to the instructions of this chip.
 *
 * Weights are unsigned, with 128 added, and 128 times the sum of a row of activations is taken off again. Sums may wrap around
 * in between: the true one fits.
 */

#ifndef INT8_PRODUCTS_H
#define INT8_PRODUCTS_H

#include "vector.h"

/* Bytes of a row of a weight that stand together, and are multiplied in one step. */
enum { STEP = 4 };

#ifdef __AVX512VNNI__

/* An activation's integer as it is stored. */
typedef int8_t factor;

/* Columns of a weight that are multiplied together, and rows that share what is loaded of them: 6 by 4 sums, 4 weights and an
 * activation are 29 of 32 registers. */
enum { PANEL = 64 };
#define SHARING_ROWS 6

typedef integers weight_step, activation_step;

static inline integers as_weights(integers bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8((char)0x80)); }
static inline weight_step load_weights(const uint8_t *from) { return _mm512_load_si512(from); }
static inline activation_step load_activation(const factor *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline void store_factors(factor *to, integers x) { _mm_store_si128((__m128i *)to, _mm512_cvtepi32_epi8(x)); }

/* Of each column four products. As the intrinsic, GCC 12 copies every sum to and fro, and stores it, at each step. */
static inline __attribute__((always_inline)) void add_products(integers *sums, weight_step weight, activation_step four) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sums) : "v"(weight), "v"(four));
}

#else

/* Pairs of sixteen-bit integers are multiplied and added without loss, which pairs of bytes are not: two products of 255 and
 * 127 saturate. So activations are stored wide, and weights widened as they are loaded: the bytes of a step stand in the order
 * 0, 2, 1, 3, and the even ones and the odd ones of a register are the two pairs of each column. */
typedef int16_t factor;
typedef int32_t __attribute__((may_alias)) pair;

/* 4 by 2 registers of sums, 4 of weights, 2 of an activation and one of products are 15 of 16. */
enum { PANEL = 16 };
#define SHARING_ROWS 4

typedef struct {
    integers first, second;
} weight_step;
typedef struct {
    __m256i first, second;
} activation_step;

static inline __m256i as_weights_half(__m256i bytes) {
    const __m256i order = _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, /* and again */
                                           0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    return _mm256_shuffle_epi8(_mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80)), order);
}
static inline integers as_weights(integers bytes) {
    return (integers){as_weights_half(bytes.low), as_weights_half(bytes.high)};
}
static inline weight_step load_weights(const uint8_t *from) {
    const __m256i low = _mm256_load_si256((const __m256i *)from), high = _mm256_load_si256((const __m256i *)from + 1);
    const __m256i even = _mm256_set1_epi16(0xff);
    return (weight_step){{_mm256_and_si256(low, even), _mm256_and_si256(high, even)},
                     {_mm256_srli_epi16(low, 8), _mm256_srli_epi16(high, 8)}};
}
static inline activation_step load_activation(const factor *from) {
    const pair *pairs = (const pair *)from;
    return (activation_step){_mm256_set1_epi32(pairs[0]), _mm256_set1_epi32(pairs[1])};
}
static inline void store_factors(factor *to, integers x) { _mm256_store_si256((__m256i *)to, narrowed(x)); }

/* As intrinsics, GCC 12 keeps half of the sums in memory. */
static inline __attribute__((always_inline)) void add_pairs(__m256i *sums, __m256i weight, __m256i pairs) {
    __m256i products;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(*sums), "=&x"(products) : "x"(weight), "x"(pairs));
}

/* Of each column four products. */
static inline __attribute__((always_inline)) void add_products(integers *sums, weight_step weight, activation_step four) {
    add_pairs(&sums->low, weight.first.low, four.first);
    add_pairs(&sums->high, weight.first.high, four.first);
    add_pairs(&sums->low, weight.second.low, four.second);
    add_pairs(&sums->high, weight.second.high, four.second);
}

#endif

#endif
