// Attention over the paged KV cache: rotary embedding, the write to the cache, and for decoding sequences the attention
// itself, which reads the blocks in place.
//
// RoFormer, Su et al. 2021, arXiv:2104.09864; PagedAttention, Kwon et al. 2023, arXiv:2309.06180.
#include "exponential.h"
#include "parallel.h"
#include "vectors.h"

enum { TOKENS = 16, BLOCKS_AHEAD = 2 };  // tokens of a block, and which block is prefetched

typedef struct {
    void *states;                 // (tokens, heads + 2 * kv_heads, head_size): queries, keys and values
    void *output;                 // (tokens, heads, head_size)
    const void *cosine, *sine;    // (context, head_size)
    void *keys, *values;          // (kv_heads, cache_slots, head_size)
    float *key_scales, *value_scales;  // (kv_heads, cache_slots) if keys and values are int8, else NULL
    const int32_t *positions;     // (tokens,), of decoding sequences
    const int32_t *block_tables;  // (tokens, max_blocks), of decoding sequences
    const int64_t *long_positions, *slots;  // (tokens,), of prompts
    int64_t tokens, heads, kv_heads, head_size, cache_slots, max_blocks;
    float scale;
    int32_t is_bfloat16, threads;
} attention_layer;

typedef struct {
    const attention_layer *layer;
    long items, next;  // work items, and the next one that no thread has taken
} attention_work;

// What a sequence has written of a head of keys and values.
typedef struct {
    const void *keys, *values;  // (cache_slots, head_size)
    const float *key_scales, *value_scales;
    const int32_t *blocks;
    long length;
} context;

static inline long smaller(long a, long b) { return a < b ? a : b; }

static context context_of(const attention_layer *layer, long row, long kv_head, long number_bytes) {
    long first = kv_head * layer->cache_slots, bytes = layer->head_size * number_bytes;
    return (context){
        .keys = (const char *)layer->keys + first * bytes, .values = (const char *)layer->values + first * bytes,
        .key_scales = layer->key_scales ? layer->key_scales + first : NULL,
        .value_scales = layer->value_scales ? layer->value_scales + first : NULL,
        .blocks = layer->block_tables + row * layer->max_blocks, .length = layer->positions[row] + 1,
    };
}

static inline long slot_of(const context *context, long position) {
    return (long)context->blocks[position / TOKENS] * TOKENS + position % TOKENS;
}

// Asks for the block some blocks behind `token`, because a processor does not foresee where the next block is. After
// the last block of `states` come those of `next`.
static inline void prefetch_ahead(const context *context, const void *states, const void *next, long token,
                                  long token_bytes) {
    long ahead = token + BLOCKS_AHEAD * TOKENS, all = (context->length + TOKENS - 1) / TOKENS * TOKENS;
    if (ahead >= all) {
        if (!next || ahead - all >= context->length) return;
        states = next, ahead -= all;
    }
    const char *block = (const char *)states + slot_of(context, ahead) * token_bytes;
    // gcc removes calls of a function that does nothing but __builtin_prefetch.
    for (long i = 0; i < TOKENS * token_bytes; i += 64) __asm__ volatile("prefetcht1 %0" : : "m"(block[i]));
}

// Replaces scores by the exponentials of their differences from the largest, and returns the sum.
static float softmax(float *scores, long count) {
    float largest = scores[0], total = 0;
#pragma omp simd reduction(max : largest)
    for (long i = 1; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (long i = 0; i < count; i++) scores[i] = exponential(scores[i] - largest);
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < count; i++) total += scores[i];
    return total;
}

#include "attention_int8.h"

#define OF_TYPE "attention_of_type.h"
#include "each_type.h"

static void rotate_tokens(void *argument) {
    attention_work *work = argument;
    for (long token; (token = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? rotate_token_bfloat16 : rotate_token_float32)(work->layer, token);
}

static void decode_heads(void *argument) {
    attention_work *work = argument;
    long kv_heads = work->layer->kv_heads;
    for (long item; (item = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? decode_head_bfloat16 : decode_head_float32)(work->layer, item / kv_heads,
                                                                                 item % kv_heads);
}

void llava_rotate_and_cache(const attention_layer *layer) {
    attention_work work = {.layer = layer, .items = layer->tokens};
    run(rotate_tokens, &work, layer->threads);
}

void llava_decode(const attention_layer *layer) {
    attention_work work = {.layer = layer, .items = layer->tokens * layer->kv_heads};
    run(decode_heads, &work, layer->threads);
}

int llava_block_tokens(void) { return TOKENS; }
