/* Decoder layers of the Llama kind in one call: norm, q k v, rotary embedding, attention over paged KV, output; norm, gate and
 * up, down. Whoever calls may have it stop before and after attention, and compute that by itself.
 */

#include <math.h>
#include <string.h>

#include "penstock.h"

/* Rows whose gate and up are held at once, so that they stay in cache. */
enum { MLP_ROWS = 256 };

enum { SILU, GELU_TANH };

struct layer {
    const float *norm, *mlp_norm;       /* [hidden] */
    const float *query_norm, *key_norm; /* [head_dim] or null */
    struct matrix qkv, out, gate_up, down;
    struct pool keys, values;
    long window;
};

struct stack {
    const struct layer *layers;
    long hidden, heads, kv_heads, head_dim, intermediate, rotary_dim, slots, block_size;
    float eps, scaling, softcap;
    int activation;
};

struct step {
    float *x;                 /* [rows, hidden], what goes in and comes out */
    const float *cos, *sin;   /* [positions, rotary_dim] */
    const int64_t *positions; /* [rows] */
    const int64_t *slots;     /* [rows], where K and V go */
    const struct span *spans;
    long rows, num_spans;
    float *qkv;      /* [rows, (heads + 2 kv_heads) * head_dim] */
    float *attended; /* [rows, heads * head_dim] */
    char *scratch;   /* penstock_scratch bytes, aligned to 64 */
    int threads;
};

enum { BEFORE_ATTENTION = 1, ATTENTION = 2, AFTER_ATTENTION = 4 };

static long at_most(long value, long limit) { return value < limit ? value : limit; }
static long most(long a, long b) { return a > b ? a : b; }

/* Rows that are quantized at once, for every product but the first. */
static long block_rows(long rows) { return at_most(rows, MLP_ROWS); }

long penstock_scratch(const struct stack *s, long rows) {
    long widest = most(most(s->hidden, s->heads * s->head_dim), s->intermediate);
    long later = block_rows(rows);
    return most(activation_bytes(rows, s->hidden),
                activation_bytes(later, widest) + padded(later * 2 * s->intermediate * sizeof(float)));
}

struct rows {
    const struct stack *stack;
    const struct layer *layer;
    const struct step *step;
    const float *x, *weight;
    long width;
    struct activations out;
};

static void normalize(const float *x, const float *weight, long width, float eps, float *out) {
    floats squares = v_zero();
    for (long at = 0; at < width; at += LANES) {
        floats value = v_load_some(lanes(width - at), x + at);
        squares = v_fma(value, value, squares);
    }
    floats factor = v_all(1.0f / sqrtf(v_sum(squares) / width + eps));
    for (long at = 0; at < width; at += LANES) {
        mask inside = lanes(width - at);
        floats value = v_mul(v_load_some(inside, x + at), factor);
        v_store_some(inside, out + at, v_mul(value, v_load_some(inside, weight + at)));
    }
}

static void normalize_row(const void *context, long row) {
    const struct rows *r = context;
    float out[r->width];
    normalize(r->x + row * r->width, r->weight, r->width, r->stack->eps, out);
    quantize_row(out, r->width, &r->out, row);
}

static void quantize_one(const void *context, long row) {
    const struct rows *r = context;
    quantize_row(r->x + row * r->width, r->width, &r->out, row);
}

/* gate and up [rows, 2 * width] -> quantized activation(gate) * up. */
static void gate_row(const void *context, long row) {
    const struct rows *r = context;
    const float *gate = r->x + row * 2 * r->width, *up = gate + r->width;
    float out[r->width];
    floats one = v_all(1.0f);
    for (long at = 0; at < r->width; at += LANES) {
        mask inside = lanes(r->width - at);
        floats g = v_load_some(inside, gate + at), activated;
        if (r->stack->activation == SILU) {
            activated = v_div(g, v_add(one, exponential(v_sub(v_zero(), g))));
        } else {
            floats cube = v_mul(v_mul(g, g), g);
            floats inner = v_fma(cube, v_all(0.044715f), g);
            inner = hyperbolic_tangent(v_mul(inner, v_all(0.7978845608f)));
            activated = v_mul(v_mul(g, v_all(0.5f)), v_add(one, inner));
        }
        v_store_some(inside, out + at, v_mul(activated, v_load_some(inside, up + at)));
    }
    quantize_row(out, r->width, &r->out, row);
}

/* One head turned by its position's angles: x * cos + rotate_half(x) * sin. */
static void rotate(float *x, const float *cos, const float *sin, long dim) {
    long half = dim / 2;
    for (long at = 0; at < half; at += LANES) {
        mask inside = lanes(half - at);
        floats low = v_load_some(inside, x + at), high = v_load_some(inside, x + half + at);
        floats cos_low = v_load_some(inside, cos + at), cos_high = v_load_some(inside, cos + half + at);
        floats sin_low = v_load_some(inside, sin + at), sin_high = v_load_some(inside, sin + half + at);
        floats turned = v_sub(v_mul(low, cos_low), v_mul(high, sin_low));
        v_store_some(inside, x + at, turned);
        turned = v_add(v_mul(high, cos_high), v_mul(low, sin_high));
        v_store_some(inside, x + half + at, turned);
    }
}

static void rotate_row(const void *context, long row) {
    const struct rows *r = context;
    const struct stack *s = r->stack;
    const struct layer *layer = r->layer;
    const long dim = s->head_dim;
    float *heads = r->step->qkv + row * (s->heads + 2 * s->kv_heads) * dim;
    const long angle = r->step->positions[row] * s->rotary_dim;
    const float *cos = r->step->cos + angle, *sin = r->step->sin + angle;
    for (long head = 0; head < s->heads + s->kv_heads; head++) {
        const float *norm = head < s->heads ? layer->query_norm : layer->key_norm;
        if (norm) normalize(heads + head * dim, norm, dim, s->eps, heads + head * dim);
        rotate(heads + head * dim, cos, sin, s->rotary_dim);
    }
    for (long head = 0; head < s->kv_heads; head++) {
        const long at = head * s->slots + r->step->slots[row];
        store_row(&layer->keys, at, heads + (s->heads + head) * dim, dim);
        store_row(&layer->values, at, heads + (s->heads + s->kv_heads + head) * dim, dim);
    }
}

static void each_row(void (*task)(const void *, long), const struct rows *rows, long count, long width) {
    run_parallel(task, rows, count, count * width < SMALL_WORK ? 1 : rows->step->threads);
}

static void before_attention(const struct stack *s, const struct layer *layer, const struct step *step) {
    struct activations in = activations_in(step->scratch, step->rows, s->hidden);
    struct rows rows = {s, layer, step, step->x, layer->norm, s->hidden, in};
    each_row(normalize_row, &rows, step->rows, s->hidden);
    multiply(&in, step->rows, &layer->qkv, 0, step->qkv, step->threads);
    each_row(rotate_row, &rows, step->rows, layer->qkv.n);
}

static void attention(const struct stack *s, const struct layer *layer, const struct step *step) {
    struct attention a = {
        .query = step->qkv, .query_row = layer->qkv.n, .query_head = s->head_dim,
        .out = step->attended, .out_row = s->heads * s->head_dim,
        .keys = layer->keys, .values = layer->values, .slots = s->slots,
        .heads = s->heads, .kv_heads = s->kv_heads, .key_dim = s->head_dim, .value_dim = s->head_dim,
        .block_size = s->block_size, .window = layer->window, .scaling = s->scaling, .softcap = s->softcap,
        .spans = step->spans, .num_spans = step->num_spans,
    };
    attend(&a, step->threads);
}

static void after_attention(const struct stack *s, const struct layer *layer, const struct step *step) {
    long width = s->heads * s->head_dim;
    for (long first = 0; first < step->rows; first += MLP_ROWS) {
        long count = at_most(step->rows - first, MLP_ROWS);
        float *x = step->x + first * s->hidden;
        float *gate_up = (float *)(step->scratch + activation_bytes(count, most(most(s->hidden, width), s->intermediate)));

        struct activations in = activations_in(step->scratch, count, width);
        struct rows rows = {s, layer, step, step->attended + first * width, 0, width, in};
        each_row(quantize_one, &rows, count, width);
        multiply(&in, count, &layer->out, x, x, step->threads);

        in = activations_in(step->scratch, count, s->hidden);
        rows = (struct rows){s, layer, step, x, layer->mlp_norm, s->hidden, in};
        each_row(normalize_row, &rows, count, s->hidden);
        multiply(&in, count, &layer->gate_up, 0, gate_up, step->threads);

        in = activations_in(step->scratch, count, s->intermediate);
        rows = (struct rows){s, layer, step, gate_up, 0, s->intermediate, in};
        each_row(gate_row, &rows, count, s->intermediate);
        multiply(&in, count, &layer->down, x, x, step->threads);
    }
}

void penstock_layers(const struct stack *stack, const struct step *step, long first, long last, int parts) {
    for (long i = first; i < last; i++) {
        const struct layer *layer = stack->layers + i;
        if (parts & BEFORE_ATTENTION) before_attention(stack, layer, step);
        if (parts & ATTENTION) attention(stack, layer, step);
        if (parts & AFTER_ATTENTION) after_attention(stack, layer, step);
    }
}

/* The rows `which` of x [.., hidden], normalized, times the vocabulary's weight -> y [count, n]. `scratch` as for
 * `penstock_int8_matmul`. */
void penstock_head(const float *x, const int64_t *which, long count, const float *norm, float eps, const struct matrix *weight,
                   float *y, char *scratch, int threads) {
    struct activations in = activations_in(scratch, count, weight->k);
    for (long row = 0; row < count; row++) {
        float out[weight->k];
        normalize(x + which[row] * weight->k, norm, weight->k, eps, out);
        quantize_row(out, weight->k, &in, row);
    }
    multiply(&in, count, weight, 0, y, threads);
}
