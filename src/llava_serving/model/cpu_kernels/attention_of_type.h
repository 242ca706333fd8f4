// The functions of attention.c for one type of numbers, which each_type.h defines.

// The first half of a head is paired with the second, as in transformers.
static inline void NAMED(rotate)(const VALUE *head, const VALUE *cosine, const VALUE *sine, long size, float *rotated) {
    for (long i = 0; i < size / 2; i++) {
        float first = READ(head[i]), second = READ(head[size / 2 + i]);
        rotated[i] = first * READ(cosine[i]) - second * READ(sine[i]);
        rotated[size / 2 + i] = second * READ(cosine[size / 2 + i]) + first * READ(sine[size / 2 + i]);
    }
}

static inline void NAMED(read_all)(float *to, const VALUE *values, long count) {
    for (long i = 0; i < count; i++) to[i] = READ(values[i]);
}

static inline void NAMED(write_all)(VALUE *to, const float *values, long count) {
    for (long i = 0; i < count; i++) to[i] = WRITE(values[i]);
}

// Writes a rotated key and its value to the cache, and rounds them to what it holds.
static void NAMED(cache)(const attention_layer *layer, long kv_head, long slot, float *key, float *value) {
    long size = layer->head_size, at = kv_head * layer->cache_slots + slot;
    if (layer->key_scales) {
        cache_int8(key, size, (int8_t *)layer->keys + at * size, layer->key_scales + at);
        cache_int8(value, size, (int8_t *)layer->values + at * size, layer->value_scales + at);
    } else {
        NAMED(write_all)((VALUE *)layer->keys + at * size, key, size);
        NAMED(write_all)((VALUE *)layer->values + at * size, value, size);
    }
}

static void NAMED(rotate_token)(const attention_layer *layer, long token) {
    long size = layer->head_size, kv_heads = layer->kv_heads, heads = layer->heads;
    VALUE *states = (VALUE *)layer->states + token * (heads + 2 * kv_heads) * size;
    const VALUE *cosine = (const VALUE *)layer->cosine + layer->long_positions[token] * size;
    const VALUE *sine = (const VALUE *)layer->sine + layer->long_positions[token] * size;
    float rotated[size], value[size];
    for (long head = 0; head < heads; head++) {
        NAMED(rotate)(states + head * size, cosine, sine, size, rotated);
        NAMED(write_all)(states + head * size, rotated, size);
    }
    for (long head = 0; head < kv_heads; head++) {
        VALUE *key = states + (heads + head) * size;
        NAMED(rotate)(key, cosine, sine, size, rotated);
        NAMED(read_all)(value, key + kv_heads * size, size);
        NAMED(cache)(layer, head, layer->slots[token], rotated, value);
        NAMED(write_all)(key, rotated, size);
        NAMED(write_all)(key + kv_heads * size, value, size);
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

// Attention of the queries that share a head of keys and values. `output` is (queries, head_size).
static void NAMED(attend)(const attention_layer *layer, const context *context, const float *query, float *output) {
    long size = layer->head_size, group = layer->heads / layer->kv_heads, length = context->length;
    const VALUE *keys = context->keys, *values = context->values;
    float scores[group * length];
    for (long token = 0; token < length; token += TOKENS) {
        prefetch_ahead(context, keys, values, token, size * (long)sizeof(VALUE));
        for (long head = 0; head < group; head++)
            NAMED(scores)(query + head * size, keys + slot_of(context, token) * size, size,
                          smaller(TOKENS, length - token), scores + head * length + token);
    }
    memset(output, 0, (size_t)(group * size) * sizeof *output);
    for (long head = 0; head < group; head++, output += size) {
        float *weights = scores + head * length, total = softmax(weights, length);
        for (long token = 0; token < length; token += TOKENS) {
            prefetch_ahead(context, values, NULL, token, size * (long)sizeof(VALUE));
            NAMED(add_weighted)(output, weights + token, values + slot_of(context, token) * size, size,
                                smaller(TOKENS, length - token));
        }
        for (long i = 0; i < size; i++) output[i] /= total;
    }
}

// One token of one sequence with one head of keys and values, and the queries that share it.
static void NAMED(decode_head)(const attention_layer *layer, long row, long kv_head) {
    long size = layer->head_size, kv_heads = layer->kv_heads, group = layer->heads / kv_heads;
    long position = layer->positions[row];
    VALUE *output = (VALUE *)layer->output + (row * layer->heads + kv_head * group) * size;
    if (position < 0) {  // a padding row, whose output is not used
        memset(output, 0, (size_t)(group * size) * sizeof(VALUE));
        return;
    }
    const context context = context_of(layer, row, kv_head, layer->key_scales ? 1 : sizeof(VALUE));
    const VALUE *states = (const VALUE *)layer->states + row * (layer->heads + 2 * kv_heads) * size;
    const VALUE *cosine = (const VALUE *)layer->cosine + position * size;
    const VALUE *sine = (const VALUE *)layer->sine + position * size;
    float query[group * size], attended[group * size], key[size], value[size];
    NAMED(rotate)(states + (layer->heads + kv_head) * size, cosine, sine, size, key);
    NAMED(read_all)(value, states + (layer->heads + kv_heads + kv_head) * size, size);
    NAMED(cache)(layer, kv_head, slot_of(&context, position), key, value);
    for (long head = 0; head < group; head++) {
        NAMED(rotate)(states + (kv_head * group + head) * size, cosine, sine, size, query + head * size);
        for (long i = 0; i < size; i++) query[head * size + i] *= layer->scale;
    }
    (layer->key_scales ? attend_int8 : NAMED(attend))(layer, &context, query, attended);
    NAMED(write_all)(output, attended, group * size);
}
