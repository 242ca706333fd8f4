// The functions of attention.c for one type of numbers, which each_type.h defines.

// The first half of a head is paired with the second, as in transformers.
static inline void NAMED(rotate)(const VALUE *head, const VALUE *cosine, const VALUE *sine, long size, float *rotated) {
    for (long i = 0; i < size / 2; i++) {
        float first = READ(head[i]), second = READ(head[size / 2 + i]);
        rotated[i] = first * READ(cosine[i]) - second * READ(sine[i]);
        rotated[size / 2 + i] = second * READ(cosine[size / 2 + i]) + first * READ(sine[size / 2 + i]);
    }
}

static inline void NAMED(write_all)(VALUE *to, const float *values, long count) {
    for (long i = 0; i < count; i++) to[i] = WRITE(values[i]);
}

static void NAMED(rotate_token)(const attention_layer *layer, long token) {
    long size = layer->head_size, kv_heads = layer->kv_heads, heads = layer->heads;
    VALUE *states = (VALUE *)layer->states + token * (heads + 2 * kv_heads) * size;
    const VALUE *cosine = (const VALUE *)layer->cosine + layer->long_positions[token] * size;
    const VALUE *sine = (const VALUE *)layer->sine + layer->long_positions[token] * size;
    float rotated[size];
    for (long head = 0; head < heads + kv_heads; head++) {
        NAMED(rotate)(states + head * size, cosine, sine, size, rotated);
        NAMED(write_all)(states + head * size, rotated, size);
    }
    for (long head = 0; head < kv_heads; head++) {
        long cached = (head * layer->cache_slots + layer->slots[token]) * size;
        const VALUE *key = states + (heads + head) * size, *value = key + kv_heads * size;
        memcpy((VALUE *)layer->keys + cached, key, (size_t)size * sizeof(VALUE));
        memcpy((VALUE *)layer->values + cached, value, (size_t)size * sizeof(VALUE));
    }
}

// Four tokens at a time, so that sums do not wait for each other. Tokens of a block are adjacent.
static inline void NAMED(scores)(const float *query, const VALUE *key, long size, long count, float *scores) {
    long token = 0;
    for (; token + 4 <= count; token += 4, key += 4 * size) {
        float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
        for (long i = 0; i < size; i++) {
            a += query[i] * READ(key[i]);
            b += query[i] * READ(key[size + i]);
            c += query[i] * READ(key[2 * size + i]);
            d += query[i] * READ(key[3 * size + i]);
        }
        scores[token] = a, scores[token + 1] = b, scores[token + 2] = c, scores[token + 3] = d;
    }
    for (; token < count; token++, key += size) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < size; i++) sum += query[i] * READ(key[i]);
        scores[token] = sum;
    }
}

static inline void NAMED(add_weighted)(float *restrict sum, const float *weights, const VALUE *value, long size,
                                       long count) {
    long token = 0;
    for (; token + 4 <= count; token += 4, value += 4 * size) {
        float a = weights[token], b = weights[token + 1], c = weights[token + 2], d = weights[token + 3];
        for (long i = 0; i < size; i++)
            sum[i] += a * READ(value[i]) + b * READ(value[size + i]) + c * READ(value[2 * size + i]) +
                      d * READ(value[3 * size + i]);
    }
    for (; token < count; token++, value += size)
        for (long i = 0; i < size; i++) sum[i] += weights[token] * READ(value[i]);
}

// One token of one sequence with one head of keys and values, and the queries that share it.
static void NAMED(decode_head)(const attention_layer *layer, long row, long kv_head) {
    long size = layer->head_size, kv_heads = layer->kv_heads, group = layer->heads / kv_heads;
    long position = layer->positions[row], length = position + 1;
    if (position < 0) {  // a padding row, whose output is not used
        memset((VALUE *)layer->output + (row * layer->heads + kv_head * group) * size, 0,
               (size_t)(group * size) * sizeof(VALUE));
        return;
    }
    const int32_t *blocks = layer->block_tables + row * layer->max_blocks;
    const VALUE *states = (const VALUE *)layer->states + row * (layer->heads + 2 * kv_heads) * size;
    const VALUE *cosine = (const VALUE *)layer->cosine + position * size;
    const VALUE *sine = (const VALUE *)layer->sine + position * size;
    VALUE *keys = (VALUE *)layer->keys + kv_head * layer->cache_slots * size;
    VALUE *values = (VALUE *)layer->values + kv_head * layer->cache_slots * size;
    long slot = ((long)blocks[position / TOKENS] * TOKENS + position % TOKENS) * size;
    float query[group * size], weights[group * length], sum[size], rotated[size];
    NAMED(rotate)(states + (layer->heads + kv_head) * size, cosine, sine, size, rotated);
    NAMED(write_all)(keys + slot, rotated, size);
    memcpy(values + slot, states + (layer->heads + kv_heads + kv_head) * size, (size_t)size * sizeof(VALUE));
    for (long head = 0; head < group; head++) {
        NAMED(rotate)(states + (kv_head * group + head) * size, cosine, sine, size, query + head * size);
        for (long i = 0; i < size; i++) query[head * size + i] *= layer->scale;
    }
    for (long token = 0; token < length; token += TOKENS) {
        const VALUE *key = keys + (long)blocks[token / TOKENS] * TOKENS * size;
        long count = length - token < TOKENS ? length - token : TOKENS;
        for (long head = 0; head < group; head++)
            NAMED(scores)(query + head * size, key, size, count, weights + head * length + token);
    }
    for (long head = 0; head < group; head++) {
        float *weight = weights + head * length, total = softmax(weight, length);
        memset(sum, 0, sizeof sum);
        for (long token = 0; token < length; token += TOKENS) {
            const VALUE *value = values + (long)blocks[token / TOKENS] * TOKENS * size;
            long count = length - token < TOKENS ? length - token : TOKENS;
            NAMED(add_weighted)(sum, weight + token, value, size, count);
        }
        for (long i = 0; i < size; i++) sum[i] /= total;
        NAMED(write_all)((VALUE *)layer->output + (row * layer->heads + kv_head * group + head) * size, sum, size);
    }
}
