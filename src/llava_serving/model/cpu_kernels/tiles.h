// Products of a block of a weight with some rows of an input, whose sums stay in registers. linear.c describes blocks,
// lanes and nibbles.
//
// A compiler keeps an array in registers only if its size is known and every loop over it is unrolled, so there is one
// function for each number of rows.
#pragma once
#include "vectors.h"

enum { BLOCK = 32, LANE_BYTES = 4, BLOCK_BYTES = BLOCK * LANE_BYTES };  // output features, and their lanes of one input
enum { GROUP = 64, GROUP_LANES = GROUP / LANE_BYTES };                  // inputs with the same multipliers and offsets
enum { TILE_ROWS = LANES == 16 ? 12 : 6 };  // rows whose sums fit into registers, with two vectors of features
enum { FEW_ROWS = 4 };  // up to so many rows use a nibble, unpacking it to memory costs more than it saves

#define UNROLL _Pragma("GCC unroll 12")
#define FOR_ROWS(ROWS) UNROLL for (int row = 0; row < (ROWS); row++)

static inline ints input_lane(const uint8_t *lane) {
    int32_t bits;
    memcpy(&bits, lane, sizeof bits);
    return same(bits);
}

// Adds the products of a tile's rows with two vectors of features to `sums` (rows, 32), over `lanes` lanes. All sums
// stay in registers.
#define DEFINE_TILE(NAME, DOT, ROWS)                                                                              \
    static void NAME##_##ROWS(const uint8_t *weight, const uint8_t *tile, long lanes, int32_t *sums) {            \
        ints sum[ROWS][2];                                                                                        \
        FOR_ROWS(ROWS) {                                                                                          \
            sum[row][0] = load(sums + row * BLOCK);                                                               \
            sum[row][1] = load(sums + row * BLOCK + LANES);                                                       \
        }                                                                                                         \
        for (long lane = 0; lane < lanes; lane++, weight += BLOCK_BYTES, tile += ROWS * LANE_BYTES) {             \
            ints first = load(weight), second = load(weight + LANES * LANE_BYTES);                                \
            FOR_ROWS(ROWS) {                                                                                      \
                ints input = input_lane(tile + row * LANE_BYTES);                                                 \
                sum[row][0] = DOT(sum[row][0], first, input);                                                     \
                sum[row][1] = DOT(sum[row][1], second, input);                                                    \
            }                                                                                                     \
        }                                                                                                         \
        FOR_ROWS(ROWS) {                                                                                          \
            store(sums + row * BLOCK, sum[row][0]);                                                               \
            store(sums + row * BLOCK + LANES, sum[row][1]);                                                       \
        }                                                                                                         \
    }

static inline ints low_nibbles(ints bytes) { return and_bits(bytes, same(0x0f0f0f0f)); }
static inline ints high_nibbles(ints bytes) { return and_bits(right16(bytes, 4), same(0x0f0f0f0f)); }

// The same in 4 bits for few rows, from the nibbles themselves. A group's sum is multiplied once.
#define DEFINE_FEW(ROWS)                                                                                          \
    static void few_##ROWS(const uint8_t *weight, const uint8_t *multiplier, const uint8_t *offset,               \
                           const uint8_t *tile, const int32_t *input_sums, long groups, int32_t *sums) {           \
        ints sum[ROWS][2];                                                                                        \
        FOR_ROWS(ROWS) sum[row][0] = sum[row][1] = zero();                                                        \
        for (long group = 0; group < groups; group++, multiplier += BLOCK, offset += BLOCK) {                     \
            ints part[ROWS][2];                                                                                   \
            FOR_ROWS(ROWS) part[row][0] = part[row][1] = zero();                                                  \
            for (int pair = 0; pair < GROUP_LANES / 2; pair++) {                                                  \
                ints first = load(weight), second = load(weight + LANES * LANE_BYTES);                            \
                FOR_ROWS(ROWS) {                                                                                  \
                    ints even = input_lane(tile + row * LANE_BYTES);                                              \
                    ints odd = input_lane(tile + (ROWS + row) * LANE_BYTES);                                      \
                    part[row][0] = dot_bytes(part[row][0], low_nibbles(first), even);                             \
                    part[row][1] = dot_bytes(part[row][1], low_nibbles(second), even);                            \
                    part[row][0] = dot_bytes(part[row][0], high_nibbles(first), odd);                             \
                    part[row][1] = dot_bytes(part[row][1], high_nibbles(second), odd);                            \
                }                                                                                                 \
                weight += BLOCK_BYTES;                                                                            \
                tile += 2 * ROWS * LANE_BYTES;                                                                    \
            }                                                                                                     \
            UNROLL for (int half = 0; half < 2; half++) {                                                         \
                ints times = bytes_to_lanes(multiplier + half * LANES);                                           \
                ints less = bytes_to_lanes(offset + half * LANES);                                                \
                FOR_ROWS(ROWS) {                                                                                  \
                    int32_t inputs = input_sums[row * (groups + 1) + group];                                      \
                    ints without = mul32(less, same(-inputs));                                                    \
                    sum[row][half] = add32(sum[row][half], add32(mul32(part[row][half], times), without));        \
                }                                                                                                 \
            }                                                                                                     \
        }                                                                                                         \
        FOR_ROWS(ROWS) {                                                                                          \
            store(sums + row * BLOCK, sum[row][0]);                                                               \
            store(sums + row * BLOCK + LANES, sum[row][1]);                                                       \
        }                                                                                                         \
    }

#define DEFINE_TILES(NAME, DOT)                                                                             \
    DEFINE_TILE(NAME, DOT, 1) DEFINE_TILE(NAME, DOT, 2) DEFINE_TILE(NAME, DOT, 3) DEFINE_TILE(NAME, DOT, 4) \
    DEFINE_TILE(NAME, DOT, 5) DEFINE_TILE(NAME, DOT, 6) WIDE_TILES(NAME, DOT)                               \
    static const tile_function tiles_##NAME[] = {                                                           \
        0, NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6 WIDE_NAMES(NAME)};
#if LANES == 16
#define WIDE_TILES(NAME, DOT)                                                                                \
    DEFINE_TILE(NAME, DOT, 7) DEFINE_TILE(NAME, DOT, 8) DEFINE_TILE(NAME, DOT, 9) DEFINE_TILE(NAME, DOT, 10)  \
    DEFINE_TILE(NAME, DOT, 11) DEFINE_TILE(NAME, DOT, 12)
#define WIDE_NAMES(NAME) , NAME##_7, NAME##_8, NAME##_9, NAME##_10, NAME##_11, NAME##_12
#else
#define WIDE_TILES(NAME, DOT)
#define WIDE_NAMES(NAME)
#endif

typedef void (*tile_function)(const uint8_t *, const uint8_t *, long, int32_t *);
typedef void (*few_function)(const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *, const int32_t *, long,
                             int32_t *);
