/* Sixteen floats at a time, `floats`, and sixteen integers, `integers`: one register of AVX-512 or two of AVX2.
 *
 * Of numbers every operation gives the same bits on both, so that a row's result does not depend on the chip either.
 */

#ifndef VECTOR_H
#define VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

/* Which of sixteen: bit i stands for lane i. */
typedef uint16_t mask;

/* The first `count` lanes, of at most 16. */
static inline mask lanes(long count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : (mask)((1u << count) - 1); }

#ifdef __AVX512F__
#include "vector_avx512.h"
#else
#include "vector_avx2.h"
#endif

/* e^x to about one unit in the last place; 0 below -104, NaN for NaN. Cody and Waite's reduction, then a polynomial of
 * degree 6 over half a binade either side (its coefficients are Taylor's, whose error there is 2e-7 at most). */
static inline floats exponential(floats x) {
    x = v_max(v_all(-110.0f), x); /* in this order NaN stays */
    x = v_min(v_all(89.0f), x);
    floats n = v_nearest(v_mul(x, v_all(1.44269504f)));
    floats r = v_less_product(n, v_all(0.693359375f), x);
    r = v_less_product(n, v_all(-2.12194440e-4f), r);
    floats p = v_all(1.0f / 720);
    p = v_fma(p, r, v_all(1.0f / 120));
    p = v_fma(p, r, v_all(1.0f / 24));
    p = v_fma(p, r, v_all(1.0f / 6));
    p = v_fma(p, r, v_all(0.5f));
    p = v_fma(p, r, v_all(1.0f));
    p = v_fma(p, r, v_all(1.0f));
    return v_scale(p, n);
}

/* tanh by e^2x, which overflows to infinity and so to 1. */
static inline floats hyperbolic_tangent(floats x) {
    floats one = v_all(1.0f);
    floats e = exponential(v_add(x, x));
    return v_sub(one, v_div(v_all(2.0f), v_add(e, one)));
}

#endif
