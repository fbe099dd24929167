/* How keys and values are kept: as they are, or in bytes by a scale for each token and head, a 127th of its largest. */

#include "penstock.h"

/* x [dim] -> the row of that number, counted over heads and slots. */
void store_row(const struct pool *pool, long row, const float *x, long dim) {
    if (!pool->scales) {
        memcpy((float *)pool->rows + row * dim, x, dim * sizeof *x);
        return;
    }
    floats highest = v_all(1e-12f), broken = v_zero();
    for (long at = 0; at < dim; at += LANES) {
        floats value = v_load_some(lanes(dim - at), x + at);
        highest = v_max(highest, v_abs(value));
        broken = v_fma(value, v_zero(), broken); /* NaN where one is not finite, as then the scale is */
    }
    const float scale = v_highest(highest) / 127.0f;
    int8_t *out = (int8_t *)pool->rows + row * dim;
    for (long at = 0; at < dim; at += LANES) {
        floats value = v_load_some(lanes(dim - at), x + at);
        v_store_bytes(out + at, v_round(v_div(value, v_all(scale))), dim - at);
    }
    pool->scales[row] = scale + v_sum(broken);
}

struct rows {
    const struct pool *pool;
    const float *x;
    long stride, head_stride, heads, num_slots, dim;
    const int64_t *slots;
};

static void store_heads(const void *context, long row) {
    const struct rows *r = context;
    for (long head = 0; head < r->heads; head++) {
        const float *x = r->x + row * r->stride + head * r->head_stride;
        store_row(r->pool, head * r->num_slots + r->slots[row], x, r->dim);
    }
}

/* x [count, heads, dim] by these strides -> the pool's `slots` [count] of `num_slots` for each head. */
void penstock_store(const struct pool *pool, const float *x, long stride, long head_stride, const int64_t *slots, long count,
                    long heads, long num_slots, long dim, int threads) {
    struct rows rows = {pool, x, stride, head_stride, heads, num_slots, dim, slots};
    run_parallel(store_heads, &rows, count, count * heads * dim < SMALL_WORK ? 1 : threads);
}
