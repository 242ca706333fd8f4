// The functions of prefill.c for one type of numbers, which each_type.h defines.

#define PER_LANE (LANE_BYTES / (long)sizeof(VALUE))

// Packs 32 keys of a sequence and their values. What is beyond the sequence's end is zero.
static void NAMED(pack_block)(const prefill_layer *layer, long kv_head, long block) {
    long size = layer->head_size, lanes = in_parts(size, PER_LANE), parts = in_parts(size, BLOCK), within = block;
    long sequence = find_sequence(layer->key_starts, BLOCK, &within);
    long length = length_of(layer->key_starts, sequence), first = layer->key_starts[sequence] + within * BLOCK;
    long count = smaller(BLOCK, length - within * BLOCK), padded = in_parts(length, BLOCK) * BLOCK;
    const VALUE *key = (const VALUE *)layer->key + first * layer->key_token + kv_head * layer->key_head;
    const VALUE *value = (const VALUE *)layer->value + first * layer->value_token + kv_head * layer->value_head;
    VALUE *keys = (VALUE *)layer->packed_keys + (kv_head * layer->blocks + block) * lanes * PER_LANE * BLOCK;
    VALUE *values = (VALUE *)layer->packed_values + (kv_head * layer->blocks + block - within) * parts * BLOCK * BLOCK;
    if (count < BLOCK || size % PER_LANE) memset(keys, 0, (size_t)(lanes * BLOCK_BYTES));
    for (long token = 0; token < count; token++, key += layer->key_token) {
        VALUE *lane = keys + token * PER_LANE;
        for (long i = 0; i + PER_LANE <= size; i += PER_LANE, lane += BLOCK * PER_LANE) memcpy(lane, key + i, LANE_BYTES);
        if (size % PER_LANE) *lane = key[size - 1];
    }
    for (long part = 0; part < parts; part++) {
        long start = part * BLOCK, numbers = smaller(BLOCK, size - start);
        VALUE *lane = values + (part * padded + within * BLOCK) * BLOCK;
        memset(lane, 0, BLOCK * BLOCK * sizeof(VALUE));
        for (long token = 0; token < count; token++) {
            const VALUE *from = value + token * layer->value_token + start;
            VALUE *to = lane + token / PER_LANE * BLOCK * PER_LANE + token % PER_LANE;
            for (long i = 0; i < numbers; i++) to[i * PER_LANE] = from[i];
        }
    }
}

// Replaces the scores of the `visible` keys of a chunk by their weights, and returns by how much the sums and weights of
// earlier keys shrink. `scores` (blocks, rows, 32) and `weights` (lanes, rows) begin with this row.
static float NAMED(weigh)(const float *scores, long rows, long count, long visible, float scale, float *largest,
                          float *total, VALUE *weights) {
    float values[CHUNK_KEYS], highest = *largest, sum = 0;
    VALUE rounded[CHUNK_KEYS];
    for (long key = 0; key < visible; key += BLOCK)
        for (long i = 0; i < BLOCK; i++) values[key + i] = scores[key * rows + i] * scale;
#pragma omp simd reduction(max : highest)
    for (long key = 0; key < visible; key++) highest = values[key] > highest ? values[key] : highest;
    for (long key = 0; key < visible; key++) values[key] = exponential(values[key] - highest);
#pragma omp simd reduction(+ : sum)
    for (long key = 0; key < visible; key++) sum += values[key];
    for (long key = 0; key < visible; key++) rounded[key] = WRITE(values[key]);
    long lanes = in_parts(count, PER_LANE);
    for (long key = visible > 0 ? visible : 0; key < lanes * PER_LANE; key++) rounded[key] = 0;
    for (long lane = 0; lane < lanes; lane++) memcpy(weights + lane * rows * PER_LANE, rounded + lane * PER_LANE, LANE_BYTES);
    if (visible <= 0) return 1;
    float factor = exponential(*largest - highest);
    *largest = highest;
    *total = *total * factor + sum;
    return factor;
}

static void NAMED(read_queries)(const VALUE *query, long stride, long size, long rows, VALUE *lanes) {
    for (long row = 0; row < rows; row++, query += stride) {
        VALUE *lane = lanes + row * PER_LANE;
        for (long i = 0; i + PER_LANE <= size; i += PER_LANE, lane += rows * PER_LANE) memcpy(lane, query + i, LANE_BYTES);
        if (size % PER_LANE) lane[0] = query[size - 1], lane[PER_LANE - 1] = 0;
    }
}

static void NAMED(attend_tile)(const prefill_layer *layer, long head, long tile) {
    long size = layer->head_size, lanes = in_parts(size, PER_LANE), parts = in_parts(size, BLOCK), within = tile;
    long sequence = find_sequence(layer->query_starts, TILE_ROWS, &within), first = within * TILE_ROWS;
    long queries = length_of(layer->query_starts, sequence), keys = length_of(layer->key_starts, sequence);
    long rows = smaller(TILE_ROWS, queries - first), token = layer->query_starts[sequence] + first;
    long seen = layer->is_causal ? keys - queries + first + 1 : keys;  // by the first row; each other one sees one more
    long seen_by_all = layer->is_causal ? seen + rows - 1 : keys;
    long kv_head = head / (layer->heads / layer->kv_heads), padded = in_parts(keys, BLOCK) * BLOCK;
    long block = kv_head * layer->blocks + count_units(layer->key_starts, sequence, BLOCK);
    const VALUE *packed_keys = (const VALUE *)layer->packed_keys + block * lanes * PER_LANE * BLOCK;
    const VALUE *packed_values = (const VALUE *)layer->packed_values + block * parts * BLOCK * BLOCK;
    VALUE query[lanes * PER_LANE * rows], weights[CHUNK_KEYS * rows];
    float scores[CHUNK_KEYS * rows], sums[parts * rows * BLOCK], largest[rows], total[rows];
    NAMED(read_queries)((const VALUE *)layer->query + token * layer->query_token + head * layer->query_head,
                        layer->query_token, size, rows, query);
    memset(sums, 0, sizeof sums);
    for (long row = 0; row < rows; row++) largest[row] = -INFINITY, total[row] = 0;
    tile_function multiply = NAMED(tiles)[rows];
    for (long start = 0; start < seen_by_all; start += CHUNK_KEYS) {
        long count = smaller(CHUNK_KEYS, seen_by_all - start);
        memset(scores, 0, (size_t)(in_parts(count, BLOCK) * rows * BLOCK) * sizeof(float));
        for (long key = 0; key < count; key += BLOCK)
            for (long i = 0; i < BLOCK; i += 2 * LANES)
                multiply((const uint8_t *)(packed_keys + (start + key) * lanes * PER_LANE) + i * LANE_BYTES,
                         (const uint8_t *)query, lanes, (int32_t *)(scores + key * rows + i));
        for (long row = 0; row < rows; row++) {
            long visible = smaller(count, (layer->is_causal ? seen + row : keys) - start);
            float factor = NAMED(weigh)(scores + row * BLOCK, rows, count, visible, layer->scale, largest + row,
                                        total + row, weights + row * PER_LANE);
            if (factor == 1) continue;
            for (long part = 0; part < parts; part++)
                for (long i = 0; i < BLOCK; i++) sums[(part * rows + row) * BLOCK + i] *= factor;
        }
        for (long part = 0; part < parts; part++)
            for (long i = 0; i < BLOCK; i += 2 * LANES)
                multiply((const uint8_t *)(packed_values + (part * padded + start) * BLOCK) + i * LANE_BYTES,
                         (const uint8_t *)weights, in_parts(count, PER_LANE),
                         (int32_t *)(sums + part * rows * BLOCK + i));
    }
    for (long row = 0; row < rows; row++) {
        VALUE *output = (VALUE *)layer->output + ((token + row) * layer->heads + head) * size;
        for (long i = 0; i < size; i++)
            output[i] = WRITE(sums[(i / BLOCK * rows + row) * BLOCK + i % BLOCK] / total[row]);
    }
}

#undef PER_LANE
