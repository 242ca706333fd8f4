// Attention over the paged KV cache: rotary embedding, the write to the cache, and for decoding sequences the attention
// itself, which reads the blocks in place.
//
// RoFormer, Su et al. 2021, arXiv:2104.09864; PagedAttention, Kwon et al. 2023, arXiv:2309.06180.
#include "exponential.h"
#include "parallel.h"
#include "vectors.h"

enum { TOKENS = 16 };  // of a block

typedef struct {
    void *states;                 // (tokens, heads + 2 * kv_heads, head_size): queries, keys and values
    void *output;                 // (tokens, heads, head_size)
    const void *cosine, *sine;    // (context, head_size)
    void *keys, *values;          // (kv_heads, cache_slots, head_size)
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

// Replaces scores by the exponentials of their differences from the largest, and returns the sum.
static float softmax(float *scores, long count) {
    float largest = scores[0], total = 0;
    for (long i = 1; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (long i = 0; i < count; i++) scores[i] = exponential(scores[i] - largest);
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < count; i++) total += scores[i];
    return total;
}

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
