// Keys and values in 8 bits for attention.c. kv_cache_int8.py says how they are rounded.
#pragma once
#include "vectors.h"

enum { WORDS = 2 * LANES };  // of a vector
enum { LARGEST_BYTE = 127, LARGEST_WORD = 32767 };  // 512 products of both fit in 32 bits

// Rounds numbers to at most `largest`, and returns their scale. It is not finite if one of them is not.
static float to_integers(const float *numbers, long count, float largest, int16_t *integers) {
    float absmax = 0, total = 0;
#pragma omp simd reduction(max : absmax) reduction(+ : total)
    for (long i = 0; i < count; i++) {
        float absolute = fabsf(numbers[i]);
        absmax = absolute > absmax ? absolute : absmax;
        total += absolute;
    }
    if (!(total < INFINITY)) {
        memset(integers, 0, (size_t)count * sizeof *integers);
        return NAN;
    }
    float inverse = largest / (absmax > 1e-30f ? absmax : 1e-30f);
    for (long i = 0; i < count; i++) integers[i] = (int16_t)(int32_t)rintf(numbers[i] * inverse);
    return absmax * (1 / largest);
}

// Replaces a key or a value by its rounded numbers, and writes those to the cache.
static void cache_int8(float *numbers, long size, int8_t *cached, float *scale) {
    int16_t integers[size];
    *scale = to_integers(numbers, size, LARGEST_BYTE, integers);
    for (long i = 0; i < size; i++) {
        cached[i] = (int8_t)integers[i];
        numbers[i] = (float)integers[i] * *scale;
    }
}

// The scores of all tokens of a block. Those that nobody has written have any score, and their scale may be NaN.
static void int8_scores(const int16_t *query, float query_scale, const int8_t *key, const float *scales, long size,
                        float *scores) {
    for (long token = 0; token < TOKENS; token += 4, key += 4 * size) {
        ints a = zero(), b = zero(), c = zero(), d = zero();
        long i = 0;
        for (; i + WORDS <= size; i += WORDS) {
            ints words = load(query + i);
            a = dot_words(a, bytes_to_words(key + i), words);
            b = dot_words(b, bytes_to_words(key + size + i), words);
            c = dot_words(c, bytes_to_words(key + 2 * size + i), words);
            d = dot_words(d, bytes_to_words(key + 3 * size + i), words);
        }
        int32_t sums[4];
        _mm_storeu_si128((__m128i *)sums, sums_of_lanes(a, b, c, d));
        for (int row = 0; row < 4; row++) {
            for (long rest = i; rest < size; rest++) sums[row] += query[rest] * key[row * size + rest];
            scores[token + row] = (float)sums[row] * (query_scale * scales[token + row]);
        }
    }
}

// Adds the values of all tokens of a block. Those that nobody has written have weight 0.
static void int8_add_weighted(float *sum, const float *weights, const int8_t *value, long size) {
    long i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        floats a = load_floats(sum + i), b = load_floats(sum + i + LANES);
        floats c = load_floats(sum + i + 2 * LANES), d = load_floats(sum + i + 3 * LANES);
        const int8_t *row = value + i;
        for (long token = 0; token < TOKENS; token++, row += size) {
            floats weight = same_float(weights[token]);
            a = multiply_add(weight, bytes_to_floats(row), a);
            b = multiply_add(weight, bytes_to_floats(row + LANES), b);
            c = multiply_add(weight, bytes_to_floats(row + 2 * LANES), c);
            d = multiply_add(weight, bytes_to_floats(row + 3 * LANES), d);
        }
        store_floats(sum + i, a), store_floats(sum + i + LANES, b);
        store_floats(sum + i + 2 * LANES, c), store_floats(sum + i + 3 * LANES, d);
    }
    for (; i < size; i++)
        for (long token = 0; token < TOKENS; token++) sum[i] += weights[token] * (float)value[token * size + i];
}

// `attend` of attention_of_type.h. Scores are sums of integers: a query is rounded to 16 bits.
static void attend_int8(const attention_layer *layer, const context *context, const float *query, float *output) {
    long size = layer->head_size, group = layer->heads / layer->kv_heads, length = context->length;
    long padded = (length + TOKENS - 1) / TOKENS * TOKENS;
    const int8_t *keys = context->keys, *values = context->values;
    float scores[group * padded], query_scales[group];
    int16_t words[group * size];
    for (long head = 0; head < group; head++)
        query_scales[head] = to_integers(query + head * size, size, LARGEST_WORD, words + head * size);
    for (long token = 0; token < length; token += TOKENS) {
        long slot = slot_of(context, token);
        prefetch_ahead(context, keys, values, token, size);
        for (long head = 0; head < group; head++)
            int8_scores(words + head * size, query_scales[head], keys + slot * size, context->key_scales + slot, size,
                        scores + head * padded + token);
    }
    memset(output, 0, (size_t)(group * size) * sizeof *output);
    for (long head = 0; head < group; head++, output += size) {
        float *weights = scores + head * padded, total = softmax(weights, length);
        for (long token = 0; token < length; token += TOKENS) {
            long slot = slot_of(context, token);
            float scaled[TOKENS] = {0};
            for (long i = 0; i < smaller(TOKENS, length - token); i++)
                scaled[i] = weights[token + i] * context->value_scales[slot + i];
            prefetch_ahead(context, values, NULL, token, size);
            int8_add_weighted(output, scaled, values + slot * size, size);
        }
        for (long i = 0; i < size; i++) output[i] /= total;
    }
}
