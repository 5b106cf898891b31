// Weights of tokens in whole numbers, as in crates/cpu/src/token_choice.rs: to the same bits.
#pragma once

#include "block.cuh"

namespace {

constexpr uint32_t FRACTION_BITS = 18, WEIGHT_BITS = 40;
constexpr uint32_t FARTHEST = (1 << 24) - 1;
constexpr uint32_t NO_TOKEN = 0xffffffffu;

// The weight of a token at a distance. Intrinsics, as a compiler may make one rounding of `a * b + c`.
__device__ uint64_t weight(uint32_t distance) {
    const float x = __fmul_rn((float)(distance & ((1 << FRACTION_BITS) - 1)), 1.0f / (1 << FRACTION_BITS));
    const auto then = [x](float higher, float coefficient) { return __fadd_rn(__fmul_rn(higher, x), coefficient); };
    float halved = -0.0009449037f;
    halved = then(halved, 0.009205799f);
    halved = then(halved, -0.05529736f);
    halved = then(halved, 0.24018015f);
    halved = then(halved, -0.6931437f);
    halved = then(halved, 1.0f);
    const uint64_t scaled = (uint32_t)__fmul_rn(halved, (float)(1 << 24));
    return (scaled << (WEIGHT_BITS - 24)) >> (distance >> FRACTION_BITS);
}

__device__ uint64_t warp_sum(uint64_t x) {
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) {
        const uint32_t low = __shfl_xor_sync(ALL_LANES, (uint32_t)x, distance);
        const uint32_t high = __shfl_xor_sync(ALL_LANES, (uint32_t)(x >> 32), distance);
        x += (uint64_t)high << 32 | low;
    }
    return x;
}

}  // namespace
