/* The largest of a row and where it first stands; NaN, and anywhere, for a row that holds one. */

#include <immintrin.h>
#include <math.h>

#include "penstock.h"
#include "vector.h"

struct search {
    const float *x;
    long width;
    float *best;
    int64_t *where;
};

static void search_row(const void *context, long row) {
    const struct search *s = context;
    const float *x = s->x + row * s->width;
    __m512 highest = _mm512_set1_ps(-INFINITY);
    __mmask16 not_numbers = 0;
    for (long at = 0; at < s->width; at += LANES) {
        __mmask16 inside = lanes(s->width - at);
        __m512 value = _mm512_mask_loadu_ps(highest, inside, x + at);
        not_numbers |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        highest = _mm512_max_ps(highest, value);
    }
    float best = _mm512_reduce_max_ps(highest);
    s->best[row] = not_numbers ? NAN : best;
    s->where[row] = 0;
    for (long at = 0; at < s->width; at += LANES) {
        __mmask16 equal = _mm512_mask_cmp_ps_mask(lanes(s->width - at), _mm512_maskz_loadu_ps(lanes(s->width - at), x + at),
                                                  _mm512_set1_ps(best), _CMP_EQ_OQ);
        if (equal) {
            s->where[row] = at + __builtin_ctz(equal);
            break;
        }
    }
}

/* x [rows, width] -> best [rows], where [rows] */
void penstock_argmax(const float *x, long rows, long width, float *best, int64_t *where, int threads) {
    struct search search = {x, width, best, where};
    run_parallel(search_row, &search, rows, rows * width < 1 << 16 ? 1 : threads);
}
