// exp(x) in float32 to about one unit in the last place, as arithmetic that compilers vectorize. 0 below -87.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float exponential(float x) {
    float limited = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float twos = rintf(limited * 1.44269504f);
    // ln 2 in two parts, so that the difference is exact (Cody and Waite 1980).
    float rest = (limited - twos * 0.693359375f) + twos * 2.12194440e-4f;
    float series = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.16666667f + rest * (0.041666642f +
                   rest * (0.0083333679f + rest * 0.0013887310f)))));
    int32_t bits = ((int32_t)twos + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : series * power;
}
