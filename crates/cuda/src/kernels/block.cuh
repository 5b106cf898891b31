// What kernels share that work on rows in blocks of threads.
#pragma once

#include <stdint.h>

namespace {

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// Entries side by side, moved at once: 16 bytes a load or store where they lie at a multiple of that.
template <typename T, uint32_t N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T entry[N];
};

template <uint32_t N, typename T> __device__ Pack<T, N> load(const T *from) {
    return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <typename T, uint32_t N> __device__ void store(T *to, const Pack<T, N> &entries) {
    *reinterpret_cast<Pack<T, N> *>(to) = entries;
}

// What a block may have that works on one row: registers are shared out accordingly.
#define ROW_KERNEL extern "C" __global__ void __launch_bounds__(1024)

// As many entries as are moved at once where rows are multiples of it: all real models. Others go entry by entry.
constexpr uint32_t PACK = 8;

}  // namespace
