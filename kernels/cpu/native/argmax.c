/* The largest of a row and where it first stands; NaN, and anywhere, for a row that holds one. */

#include <math.h>

#include "penstock.h"

struct search {
    const float *x;
    long width;
    float *best;
    int64_t *where;
};

static void search_row(const void *context, long row) {
    const struct search *s = context;
    const float *x = s->x + row * s->width;
    floats highest = v_all(-INFINITY);
    mask not_numbers = 0;
    for (long at = 0; at < s->width; at += LANES) {
        mask inside = lanes(s->width - at);
        floats value = v_choose(inside, v_load_some(inside, x + at), highest);
        not_numbers |= v_not_numbers(value);
        highest = v_max(highest, value);
    }
    float best = v_highest(highest);
    s->best[row] = not_numbers ? NAN : best;
    s->where[row] = 0;
    for (long at = 0; at < s->width; at += LANES) {
        const mask inside = lanes(s->width - at);
        const mask equal = inside & v_equal(v_load_some(inside, x + at), v_all(best));
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
