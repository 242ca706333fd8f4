// The functions of row_wise.c for one type of numbers, which each_type.h defines.

// RMSNorm, Zhang and Sennrich 2019, arXiv:1910.07467.
static void NAMED(norm_row)(const row_wise_layer *layer, long row) {
    long size = layer->size;
    VALUE *values = (VALUE *)layer->rows + row * size, *output = (VALUE *)layer->output + row * size;
    const VALUE *added = layer->added ? (const VALUE *)layer->added + row * size : NULL;
    const VALUE *weight = layer->weight;
    if (added)
        for (long i = 0; i < size; i++) values[i] = WRITE(READ(values[i]) + READ(added[i]));
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < size; i++) squares += READ(values[i]) * READ(values[i]);
    float factor = 1 / sqrtf(squares / (float)size + layer->epsilon);
    for (long i = 0; i < size; i++) output[i] = WRITE(READ(values[i]) * factor * READ(weight[i]));
}

// SiLU, Elfwing et al. 2017, arXiv:1702.03118, and the product of SwiGLU, Shazeer 2020, arXiv:2002.05202.
static void NAMED(silu_row)(const row_wise_layer *layer, long row) {
    long size = layer->size;
    const VALUE *gate = (const VALUE *)layer->rows + row * 2 * size, *up = gate + size;
    VALUE *output = (VALUE *)layer->output + row * size;
    for (long i = 0; i < size; i++) {
        float value = READ(gate[i]);
        output[i] = WRITE(value / (1 + exponential(-value)) * READ(up[i]));
    }
}

// An approximation of GELU, Hendrycks and Gimpel 2016, arXiv:1606.08415.
static void NAMED(quick_gelu_row)(const row_wise_layer *layer, long row) {
    const VALUE *values = (const VALUE *)layer->rows + row * layer->size;
    VALUE *output = (VALUE *)layer->output + row * layer->size;
    for (long i = 0; i < layer->size; i++) {
        float value = READ(values[i]);
        output[i] = WRITE(value / (1 + exponential(-1.702f * value)));
    }
}
