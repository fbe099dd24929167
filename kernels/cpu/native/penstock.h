/* What the parts of the library share: shapes are row-major, strides count elements, every function is a pure one of its
 * arguments, and a row's result never depends on the rows beside it. */

#ifndef PENSTOCK_H
#define PENSTOCK_H

#include "int8_products.h"

/* Integers to which rows of quantized activations are padded. */
enum { ROW_ALIGNMENT = 64 };
/* Keys that attention visits together, from positions that are multiples of it. */
enum { KEY_TILE = 64 };
enum { MOST_HEAD_DIM = 256 };
/* Numbers that are over before another thread is awake. */
enum { SMALL_WORK = 1 << 14 };

/* An INT8 weight [n, k] with a scale for each row, packed by `penstock_pack`. */
struct matrix {
    const uint8_t *packed;
    const float *scale; /* [n] */
    const float *bias;  /* [n] or null */
    long n, k;
    const float *sum; /* [n], of what the integers of a row stand for; null: it multiplies rows whose zero is 0 */
};

/* Quantized rows [rows, stride]: of each, what a step from one integer to the next stands for, which integer stands for zero,
 * and the sum of its integers. */
struct activations {
    factor *values;
    long stride;
    float *scale, *zero;
    int32_t *sum;
};

/* Rows of one sequence: `count` from `row` on, at consecutive positions from `first_position`. */
struct span {
    long row, count, first_position;
    const int32_t *block_table;
};

/* Keys or values of a layer, a row for each slot of each head: [kv_heads, slots, dim] floats, or where there are `scales`
 * [kv_heads, slots] bytes, a step of which counts for its row's scale. */
struct pool {
    void *rows;
    float *scales;
};

struct attention {
    const float *query; /* row r, head h: at r * query_row + h * query_head */
    long query_row, query_head;
    float *out; /* row r, head h: at r * out_row + h * value_dim */
    long out_row;
    struct pool keys, values; /* of key_dim and value_dim */
    long slots;
    const float *sinks; /* [heads] or null */
    long heads, kv_heads, key_dim, value_dim, block_size, window; /* window 0: none */
    float scaling, softcap; /* softcap 0: none */
    const struct span *spans;
    long num_spans;
};

/* task(context, i) for every i below `count`, on up to `threads` threads; returns when all are done. */
void run_parallel(void (*task)(const void *context, long index), const void *context, long count, int threads);

long padded(long k);

/* What so many rows take, a multiple of 64 bytes, and how they lie there. */
long activation_bytes(long rows, long k);
struct activations activations_in(char *scratch, long rows, long k);

void quantize_row(const float *x, long k, const struct activations *out, long row);

/* y[rows, n] at a stride of n: x @ weight^T, scaled, plus bias, plus `residual` of the same shape, which may be y. */
void multiply(const struct activations *x, long rows, const struct matrix *weight, const float *residual, float *y,
              int threads);

void store_row(const struct pool *pool, long row, const float *x, long dim);

void attend(const struct attention *attention, int threads);

#endif
