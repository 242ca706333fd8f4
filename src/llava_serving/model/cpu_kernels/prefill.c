// Attention of prompts and of the vision tower: many queries of several sequences, without a matrix of scores in memory
// (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867; FlashAttention, Dao et al. 2022, arXiv:2205.14135).
//
// Both products are those of tiles.h. First, keys and values are packed as weights: keys in blocks of 32 keys, whose
// inputs are the head's numbers, and values in blocks of 32 of the head's numbers, whose inputs are the keys. Then each
// work item takes a tile of queries of one head through the keys that they see, CHUNK_KEYS at a time.
#include <math.h>

#include "exponential.h"
#include "parallel.h"
#include "tiles.h"

enum { CHUNK_KEYS = 256 };  // whose scores stay in the first-level cache

typedef struct {
    const void *query, *key, *value;            // (tokens, heads or kv_heads, head_size), with the strides below
    void *output;                               // (tokens, heads, head_size)
    void *packed_keys;                          // scratch: (kv_heads, blocks, head_size in whole lanes, 32)
    void *packed_values;                        // scratch: (kv_heads, blocks * 32, head_size in whole blocks)
    const int32_t *query_starts, *key_starts;   // (sequences + 1,): the first token of each, and all tokens
    int64_t sequences, heads, kv_heads, head_size, blocks;
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;  // strides, in numbers
    float scale;
    int32_t is_causal;  // a sequence's queries are its last keys, and see no later key
    int32_t is_bfloat16, threads;
} prefill_layer;

typedef struct {
    const prefill_layer *layer;
    long items, next;  // work items, and the next one that no thread has taken
    long units;        // of a head: blocks of keys, or tiles of queries, of all sequences
} prefill_work;

static inline ints dot_float32(ints sum, ints w, ints x) {
    return as_ints(multiply_add(as_floats(w), as_floats(x), as_floats(sum)));
}

DEFINE_TILES(float32, dot_float32)
DEFINE_TILES(bfloat16, dot_bfloat16)

static inline long in_parts(long count, long size) { return (count + size - 1) / size; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline long length_of(const int32_t *starts, long sequence) { return starts[sequence + 1] - starts[sequence]; }

static long count_units(const int32_t *starts, long sequences, long size) {
    long units = 0;
    for (long sequence = 0; sequence < sequences; sequence++) units += in_parts(length_of(starts, sequence), size);
    return units;
}

// Returns the sequence of a unit of `size` tokens, and makes `unit` its index in this sequence.
static long find_sequence(const int32_t *starts, long size, long *unit) {
    long sequence = 0;
    for (long count; *unit >= (count = in_parts(length_of(starts, sequence), size)); sequence++) *unit -= count;
    return sequence;
}

#define OF_TYPE "prefill_of_type.h"
#include "each_type.h"

static void pack_blocks(void *argument) {
    prefill_work *work = argument;
    for (long item; (item = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? pack_block_bfloat16 : pack_block_float32)(work->layer, item / work->units,
                                                                              item % work->units);
}

static void attend_tiles(void *argument) {
    prefill_work *work = argument;
    for (long item; (item = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? attend_tile_bfloat16 : attend_tile_float32)(work->layer, item / work->units,
                                                                                item % work->units);
}

void llava_prefill(const prefill_layer *layer) {
    prefill_work work = {.layer = layer, .units = layer->blocks};
    work.items = layer->kv_heads * work.units;
    run(pack_blocks, &work, layer->threads);
    work.next = 0;
    work.units = count_units(layer->query_starts, layer->sequences, TILE_ROWS);
    work.items = layer->heads * work.units;
    run(attend_tiles, &work, layer->threads);
}
