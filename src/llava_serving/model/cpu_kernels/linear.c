// Linear layers with weights in 8 bits, 4 bits or bfloat16, for any number of rows.
//
// A weight is stored in blocks of 32 output features. A block holds, for each lane of 32 bits of the input (4 bytes, or
// 2 bfloat16), the lanes of its 32 features one after the other. So each step loads 128 adjacent bytes, and multiplies
// them with one lane of the input, which all 32 features share. A thread reads memory in one long stream.
//
// 8 bits: the weight is scale[feature] * (byte - 128). An input row is scaled to signed bytes by its largest absolute
// value. Sums of products are exact integers, so that a row's result depends on no other row.
// 4 bits: two lanes of a block share their bytes, the first in the low halves. In a group of 64 inputs, the byte of 8
// bits is multiplier * nibble + 128 - offset, with a multiplier and an offset of one byte each (progressive
// quantization: QServe, Lin et al. 2024, arXiv:2405.04532). So 4 bits become 8 bits by integer arithmetic, and the rest
// is the same.
#include <math.h>

#include "parallel.h"
#include "tiles.h"

enum { CHUNK = 512 };      // lanes whose weights stay in the second-level cache while all rows of a panel use them
enum { PANEL_ROWS = 320 };  // rows whose inputs stay there
enum { RUNS_OF_A_THREAD = 6 };  // work items for each thread, so that none waits long for the slowest
enum { ALONE_ROWS = 8 };  // preparing so many rows is not worth waking other threads

typedef enum { INT8, INT4, BFLOAT16 } number_format;

typedef struct {
    const void *input;          // (rows, in_features), float32 or bfloat16
    void *output;               // (rows, out_features), of the same type
    const uint8_t *weight;      // (blocks, lanes, 32) lanes; in 4 bits (blocks, lanes / 2, 32)
    const float *scale;         // (blocks * 32,), of integers
    const uint8_t *multiplier;  // (blocks, groups, 32), in 4 bits
    const uint8_t *offset;      // (blocks, groups, 32), in 4 bits
    const float *bias;          // (out_features,) or NULL
    uint8_t *tiles;             // scratch: (rows, lanes) lanes
    float *row_scale;           // scratch: (rows,), of integers
    int32_t *input_sums;        // scratch: (rows, groups + 1), of integers: each group's, and the row's
    int64_t rows, in_features, out_features, lanes;
    int32_t format, is_bfloat16, threads;
} linear_layer;

typedef struct {
    const linear_layer *layer;
    long items, next;  // work items, and the next one that no thread has taken
    long blocks, groups, panel_rows, tile_rows;
    long run_blocks, runs;  // blocks of a work item, and work items of a panel
} linear_work;

DEFINE_TILES(bytes, dot_bytes)
DEFINE_TILES(bfloat16, dot_bfloat16)
DEFINE_FEW(1) DEFINE_FEW(2) DEFINE_FEW(3) DEFINE_FEW(4)
static const few_function few[] = {0, few_1, few_2, few_3, few_4};

// Tiles: the rows of a panel are cut into tiles of `tile_rows`. A tile holds, for each lane, the lanes of its rows.

static inline int uses_few(const linear_layer *layer) { return layer->format == INT4 && layer->rows <= FEW_ROWS; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline long larger(long a, long b) { return a > b ? a : b; }

static inline long rows_of_panel(const linear_work *work, long start) {
    return smaller(work->panel_rows, work->layer->rows - start);
}

static inline long padded_features(const linear_layer *layer) {
    return layer->lanes * (layer->format == BFLOAT16 ? 2 : 4);
}

static void read_row(const linear_layer *layer, long row, float *values) {
    long count = layer->in_features, first = row * count;
    if (layer->is_bfloat16)
        for (long k = 0; k < count; k++) values[k] = from_bfloat16(((const uint16_t *)layer->input)[first + k]);
    else
        memcpy(values, (const float *)layer->input + first, (size_t)count * sizeof(float));
    for (long k = count; k < padded_features(layer); k++) values[k] = 0;
}

// Returns the scale of signed bytes. It is NaN if a value is not finite, and then so is all of the row's output.
static float quantize_row(const float *values, long count, int8_t *bytes) {
    float largest = 0, not_finite = 0;
    for (long k = 0; k < count; k++) {
        float absolute = fabsf(values[k]);
        largest = absolute > largest ? absolute : largest;
        not_finite += values[k] * 0;
    }
    float scale = largest / 127 + not_finite, inverse = scale > 0 ? 127 / largest : 0;
    for (long k = 0; k < count; k++) bytes[k] = (int8_t)(int32_t)rintf(values[k] * inverse);
    return scale;
}

static void prepare_row(const linear_work *work, long row) {
    const linear_layer *layer = work->layer;
    long count = padded_features(layer);
    float values[count];
    uint8_t bytes[layer->lanes * LANE_BYTES];
    read_row(layer, row, values);
    if (layer->format == BFLOAT16) {
        for (long k = 0; k < count; k++) ((uint16_t *)bytes)[k] = to_bfloat16(values[k]);
    } else {
        layer->row_scale[row] = quantize_row(values, count, (int8_t *)bytes);
        int32_t *sums = layer->input_sums + row * (work->groups + 1), *all = sums + work->groups;
        *all = 0;
        for (long group = 0; group < work->groups; group++) {
            sums[group] = 0;
            for (long k = 0; k < GROUP; k++) sums[group] += (int8_t)bytes[group * GROUP + k];
            *all += sums[group];
        }
    }
    long panel = row / work->panel_rows * work->panel_rows, in_panel = row - panel;
    long tile = in_panel / work->tile_rows * work->tile_rows;
    long height = smaller(work->tile_rows, rows_of_panel(work, panel) - tile);
    uint8_t *lane = layer->tiles + ((panel + tile) * layer->lanes + in_panel - tile) * LANE_BYTES;
    for (long k = 0; k < layer->lanes; k++) memcpy(lane + k * height * LANE_BYTES, bytes + k * LANE_BYTES, LANE_BYTES);
}

static void prepare_rows(void *argument) {
    linear_work *work = argument;
    for (long row; (row = take(&work->next)) < work->items;) prepare_row(work, row);
}

// Writes the bytes of 8 bits of a block's lanes from `start` to `stop`, which begin and end with a group.
static void unpack(const linear_work *work, long block, long start, long stop, uint8_t *bytes) {
    const linear_layer *layer = work->layer;
    const uint8_t *nibbles = layer->weight + (block * layer->lanes + start) / 2 * BLOCK_BYTES;
    for (long lane = start; lane < stop; lane += GROUP_LANES) {
        long group = (block * work->groups + lane / GROUP_LANES) * BLOCK;
        for (int first = 0; first < BLOCK; first += LANES) {
            ints times = mul32(bytes_to_lanes(layer->multiplier + group + first), same(0x00010001));
            ints less = mul32(bytes_to_lanes(layer->offset + group + first), same(0x01010101));
            ints shift = sub8(same((int32_t)0x80808080), less);
            const uint8_t *from = nibbles + first * LANE_BYTES;
            uint8_t *to = bytes + first * LANE_BYTES;
            for (int pair = 0; pair < GROUP_LANES / 2; pair++, from += BLOCK_BYTES, to += 2 * BLOCK_BYTES) {
                ints both = load(from);
                store(to, add8(mul16(low_nibbles(both), times), shift));
                store(to + BLOCK_BYTES, add8(mul16(high_nibbles(both), times), shift));
            }
        }
        nibbles += GROUP_LANES / 2 * BLOCK_BYTES;
        bytes += GROUP_LANES * BLOCK_BYTES;
    }
}

static void write_block(const linear_work *work, long block, long panel, const int32_t *sums) {
    const linear_layer *layer = work->layer;
    long first = block * BLOCK, count = smaller(BLOCK, layer->out_features - first);
    for (long row = 0; row < rows_of_panel(work, panel); row++, sums += BLOCK) {
        float values[BLOCK];
        if (layer->format == BFLOAT16) {
            memcpy(values, sums, sizeof values);
        } else {
            int32_t inputs = layer->input_sums[(panel + row + 1) * (work->groups + 1) - 1];
            int32_t zero_point = uses_few(layer) ? 0 : 128 * inputs;
            for (int i = 0; i < BLOCK; i++)
                values[i] = (float)(sums[i] - zero_point) * layer->row_scale[panel + row] * layer->scale[first + i];
        }
        if (layer->bias)
            for (long i = 0; i < count; i++) values[i] += layer->bias[first + i];
        long output = (panel + row) * layer->out_features + first;
        if (layer->is_bfloat16)
            for (long i = 0; i < count; i++) ((uint16_t *)layer->output)[output + i] = to_bfloat16(values[i]);
        else
            memcpy((float *)layer->output + output, values, (size_t)count * sizeof(float));
    }
}

static void multiply_block(const linear_work *work, long block, long panel) {
    const linear_layer *layer = work->layer;
    long rows = rows_of_panel(work, panel);
    const uint8_t *tiles = layer->tiles + panel * layer->lanes * LANE_BYTES;
    int32_t sums[PANEL_ROWS * BLOCK];
    memset(sums, 0, (size_t)(rows * BLOCK) * sizeof(int32_t));
    if (uses_few(layer)) {
        long group = block * work->groups * BLOCK;
        const uint8_t *weight = layer->weight + block * layer->lanes / 2 * BLOCK_BYTES;
        for (int i = 0; i < BLOCK; i += 2 * LANES)
            few[rows](weight + i * LANE_BYTES, layer->multiplier + group + i, layer->offset + group + i, tiles,
                      layer->input_sums, work->groups, sums + i);
        write_block(work, block, panel, sums);
        return;
    }
    const tile_function *functions = layer->format == BFLOAT16 ? tiles_bfloat16 : tiles_bytes;
    uint8_t unpacked[CHUNK * BLOCK_BYTES];
    for (long start = 0; start < layer->lanes; start += CHUNK) {
        long stop = smaller(start + CHUNK, layer->lanes);
        const uint8_t *weight = layer->weight + (block * layer->lanes + start) * BLOCK_BYTES;
        if (layer->format == INT4) {
            unpack(work, block, start, stop, unpacked);
            weight = unpacked;
        }
        for (long tile = 0; tile < rows; tile += work->tile_rows) {
            long height = smaller(work->tile_rows, rows - tile);
            const uint8_t *inputs = tiles + (tile * layer->lanes + start * height) * LANE_BYTES;
            for (int i = 0; i < BLOCK; i += 2 * LANES)
                functions[height](weight + i * LANE_BYTES, inputs, stop - start, sums + tile * BLOCK + i);
        }
    }
    write_block(work, block, panel, sums);
}

// An item is a run of adjacent blocks, because processors read long streams of memory faster than many short ones.
static void multiply_blocks(void *argument) {
    linear_work *work = argument;
    for (long item; (item = take(&work->next)) < work->items;) {
        long panel = item / work->runs * work->panel_rows, first = item % work->runs * work->run_blocks;
        for (long block = first; block < smaller(first + work->run_blocks, work->blocks); block++)
            multiply_block(work, block, panel);
    }
}

static long in_equal_parts(long total, long largest) {
    long parts = (total + largest - 1) / largest;
    return (total + parts - 1) / parts;
}

void llava_linear(const linear_layer *layer) {
    linear_work work = {.layer = layer, .items = layer->rows};
    work.blocks = (layer->out_features + BLOCK - 1) / BLOCK;
    work.groups = layer->lanes / GROUP_LANES;
    work.panel_rows = in_equal_parts(layer->rows, PANEL_ROWS);
    work.tile_rows = in_equal_parts(work.panel_rows, TILE_ROWS);
    run(prepare_rows, &work, layer->rows > ALONE_ROWS ? layer->threads : 1);
    work.next = 0;
    work.run_blocks = larger(1, work.blocks / (layer->threads * RUNS_OF_A_THREAD));
    work.runs = (work.blocks + work.run_blocks - 1) / work.run_blocks;
    work.items = work.runs * ((layer->rows + work.panel_rows - 1) / work.panel_rows);
    run(multiply_blocks, &work, layer->threads);
}

int llava_lanes(void) { return LANES; }
