// What a decoder layer does to each row by itself: RMSNorm with the residual before it, SiLU with its product,
// and for the vision tower QuickGELU.
#include <math.h>

#include "exponential.h"
#include "parallel.h"
#include "vectors.h"

enum { ALONE_VALUES = 1 << 15 };  // so few values are not worth waking other threads

typedef struct {
    void *rows;          // (rows, size), or (rows, 2 * size) of gate and up
    const void *added;   // (rows, size) or NULL: is added to `rows` first
    const void *weight;  // (size,)
    void *output;        // (rows, size)
    int64_t count, size;
    float epsilon;
    int32_t is_bfloat16, threads;
} row_wise_layer;

typedef struct {
    const row_wise_layer *layer;
    long items, next;  // work items, and the next one that no thread has taken
} row_wise_work;

#define OF_TYPE "row_wise_of_type.h"
#include "each_type.h"

static void norm_rows(void *argument) {
    row_wise_work *work = argument;
    for (long row; (row = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? norm_row_bfloat16 : norm_row_float32)(work->layer, row);
}

static void silu_rows(void *argument) {
    row_wise_work *work = argument;
    for (long row; (row = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? silu_row_bfloat16 : silu_row_float32)(work->layer, row);
}

static void quick_gelu_rows(void *argument) {
    row_wise_work *work = argument;
    for (long row; (row = take(&work->next)) < work->items;)
        (work->layer->is_bfloat16 ? quick_gelu_row_bfloat16 : quick_gelu_row_float32)(work->layer, row);
}

static void run_rows(const row_wise_layer *layer, void (*function)(void *)) {
    row_wise_work work = {.layer = layer, .items = layer->count};
    run(function, &work, layer->count * layer->size > ALONE_VALUES ? layer->threads : 1);
}

void llava_norm(const row_wise_layer *layer) { run_rows(layer, norm_rows); }
void llava_silu_product(const row_wise_layer *layer) { run_rows(layer, silu_rows); }
void llava_quick_gelu(const row_wise_layer *layer) { run_rows(layer, quick_gelu_rows); }
