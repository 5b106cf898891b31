// What a forward pass computes between matrix products and attention, one idea a kernel.
//
// Activations are float16 or bfloat16, the residual stream, norms' weights, angles and logits single precision; arithmetic
// is single precision throughout. All shapes are row-major. Tests compile this file as host C++, too, and hold each
// kernel against double precision: so it uses nothing but threads, __shared__, __syncthreads and shuffles.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "kernels/block.cuh"

namespace {

__device__ float widen(__half x) { return __half2float(x); }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ T narrow(float x);
template <> __device__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// The sum over the lanes of a warp, on each of them.
__device__ float warp_sum(float x) {
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// The sum over a block of whole warps, on each of its threads.
__device__ float block_sum(float x) {
    __shared__ float of_warps[WARP];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? of_warps[lane] : 0.0f);
}

// Of a token id that is no id, but a place among the tokens that the step before chose.
constexpr uint32_t CHOSEN_BEFORE = (uint32_t)1 << 31;

// A block a token. residual [tokens, hidden] = table [rows, hidden] at the token's row, times scale; zeros for tokens
// whose rows another rank has: this one has those of [first, end). Zeros, too, where the step before could not choose one.
template <uint32_t N, typename T>
__device__ void embed_packs(const T *table, const uint32_t *token_ids, const uint32_t *chosen, float *residual,
                            uint32_t hidden, uint32_t first, uint32_t end, float scale) {
    const uint32_t id = token_ids[blockIdx.x], token = id < CHOSEN_BEFORE ? id : chosen[id - CHOSEN_BEFORE];
    const bool here = token >= first && token < end;
    const T *from = table + (here ? (size_t)(token - first) * hidden : 0);
    float *to = residual + (size_t)blockIdx.x * hidden;
    for (uint32_t i = threadIdx.x * N; i < hidden; i += blockDim.x * N) {
        Pack<float, N> wide = {};
        if (here) {
            const Pack<T, N> entries = load<N>(from + i);
            for (uint32_t j = 0; j < N; j++) wide.entry[j] = widen(entries.entry[j]) * scale;
        }
        store(to + i, wide);
    }
}

template <typename T>
__device__ void embed(const T *table, const uint32_t *token_ids, const uint32_t *chosen, float *residual, uint32_t hidden,
                      uint32_t first, uint32_t end, float scale) {
    hidden % PACK == 0 ? embed_packs<PACK>(table, token_ids, chosen, residual, hidden, first, end, scale)
                       : embed_packs<1>(table, token_ids, chosen, residual, hidden, first, end, scale);
}

// Packs of a row that a thread of add_rms_norm keeps in registers.
constexpr uint32_t KEPT_PACKS = 4;

// A block a row, of enough threads for all of it: hidden is at most blockDim.x times what a thread keeps. residual
// [rows, hidden] += delta, normalised with delta_norm where there is one; normed = the residual's RMSNorm with weight. Either of
// delta and delta_norm may be null.
template <uint32_t N, typename T>
__device__ void add_rms_norm_packs(float *residual, const T *delta, const float *delta_norm, const float *weight, T *normed,
                                   uint32_t hidden, float eps) {
    const size_t row = (size_t)blockIdx.x * hidden;
    const auto own = [&](uint32_t pack) { return (pack * blockDim.x + threadIdx.x) * N; };
    float delta_scale = 1.0f;
    if (delta && delta_norm) {
        float squares = 0.0f;
        for (uint32_t i = threadIdx.x * N; i < hidden; i += blockDim.x * N) {
            const Pack<T, N> added = load<N>(delta + row + i);
            for (uint32_t j = 0; j < N; j++) squares += widen(added.entry[j]) * widen(added.entry[j]);
        }
        delta_scale = rsqrtf(block_sum(squares) / hidden + eps);
    }
    Pack<float, N> kept[KEPT_PACKS];
    float squares = 0.0f;
    for (uint32_t pack = 0; pack < KEPT_PACKS; pack++) {
        const uint32_t i = own(pack);
        if (i >= hidden) continue;
        Pack<float, N> x = load<N>(residual + row + i);
        if (delta) {
            const Pack<T, N> added = load<N>(delta + row + i);
            Pack<float, N> scale;
            for (uint32_t j = 0; j < N; j++) scale.entry[j] = delta_scale;
            if (delta_norm) {
                const Pack<float, N> norm = load<N>(delta_norm + i);
                for (uint32_t j = 0; j < N; j++) scale.entry[j] *= norm.entry[j];
            }
            for (uint32_t j = 0; j < N; j++) x.entry[j] += widen(added.entry[j]) * scale.entry[j];
            store(residual + row + i, x);
        }
        for (uint32_t j = 0; j < N; j++) squares += x.entry[j] * x.entry[j];
        kept[pack] = x;
    }
    const float scale = rsqrtf(block_sum(squares) / hidden + eps);
    for (uint32_t pack = 0; pack < KEPT_PACKS; pack++) {
        const uint32_t i = own(pack);
        if (i >= hidden) continue;
        const Pack<float, N> by = load<N>(weight + i);
        Pack<T, N> y;
        for (uint32_t j = 0; j < N; j++) y.entry[j] = narrow<T>(kept[pack].entry[j] * scale * by.entry[j]);
        store(normed + row + i, y);
    }
}

template <typename T>
__device__ void add_rms_norm(float *residual, const T *delta, const float *delta_norm, const float *weight, T *normed,
                             uint32_t hidden, float eps) {
    hidden % PACK == 0 ? add_rms_norm_packs<PACK>(residual, delta, delta_norm, weight, normed, hidden, eps)
                       : add_rms_norm_packs<1>(residual, delta, delta_norm, weight, normed, hidden, eps);
}

// A warp a head: of each row of x, [rows, row_width], the heads of head_dim entries from first_entry on become their
// RMSNorm with weight [head_dim].
template <typename T>
__device__ void norm_heads(T *x, const float *weight, uint32_t rows, uint32_t row_width, uint32_t first_entry,
                           uint32_t heads, uint32_t head_dim, float eps) {
    const uint32_t index = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (index >= rows * heads) return;
    T *head = x + (size_t)(index / heads) * row_width + first_entry + index % heads * head_dim;
    float squares = 0.0f;
    for (uint32_t i = lane; i < head_dim; i += WARP) {
        const float entry = widen(head[i]);
        squares += entry * entry;
    }
    const float scale = rsqrtf(warp_sum(squares) / head_dim + eps);
    for (uint32_t i = lane; i < head_dim; i += WARP) head[i] = narrow<T>(widen(head[i]) * scale * weight[i]);
}

// A block a token. In rows of qkv, [tokens, (heads + 2 kv_heads) head_dim], q is turned in place; k, turned, and v go
// into the caches, [blocks, page, kv_heads, head_dim], at the token's slot. Entry i of a head is paired with i + half;
// entries from 2 half on stay as they are. cos and sin are [positions, half].
template <uint32_t N, typename T>
__device__ void rope_and_cache_packs(T *qkv, const float *cos, const float *sin, const uint32_t *positions,
                                     const uint32_t *slots, T *k_cache, T *v_cache, uint32_t heads, uint32_t kv_heads,
                                     uint32_t head_dim, uint32_t half) {
    const uint32_t token = blockIdx.x;
    T *q = qkv + (size_t)token * (heads + 2 * kv_heads) * head_dim;
    const T *k = q + heads * head_dim, *v = k + kv_heads * head_dim;
    T *k_to = k_cache + (size_t)slots[token] * kv_heads * head_dim;
    T *v_to = v_cache + (size_t)slots[token] * kv_heads * head_dim;
    const float *c = cos + (size_t)positions[token] * half, *s = sin + (size_t)positions[token] * half;
    // First the pairs that are turned, then what of keys stays as it is, then values.
    const uint32_t turned = (heads + kv_heads) * half, rest = head_dim - 2 * half;
    const uint32_t turned_and_kept = turned + kv_heads * rest, all = turned_and_kept + kv_heads * head_dim;
    for (uint32_t i = threadIdx.x * N; i < all; i += blockDim.x * N) {
        if (i < turned) {
            const uint32_t head = i / half, pair = i % half;
            const T *from = q + head * head_dim + pair;
            T *to = (head < heads ? q + head * head_dim : k_to + (head - heads) * head_dim) + pair;
            Pack<T, N> a = load<N>(from), b = load<N>(from + half);
            const Pack<float, N> by_cos = load<N>(c + pair), by_sin = load<N>(s + pair);
            for (uint32_t j = 0; j < N; j++) {
                const float x = widen(a.entry[j]), y = widen(b.entry[j]);
                a.entry[j] = narrow<T>(x * by_cos.entry[j] - y * by_sin.entry[j]);
                b.entry[j] = narrow<T>(y * by_cos.entry[j] + x * by_sin.entry[j]);
            }
            store(to, a);
            store(to + half, b);
        } else if (i < turned_and_kept) {
            const uint32_t at = (i - turned) / rest * head_dim + 2 * half + (i - turned) % rest;
            store(k_to + at, load<N>(k + at));
        } else {
            store(v_to + (i - turned_and_kept), load<N>(v + (i - turned_and_kept)));
        }
    }
}

template <typename T>
__device__ void rope_and_cache(T *qkv, const float *cos, const float *sin, const uint32_t *positions,
                               const uint32_t *slots, T *k_cache, T *v_cache, uint32_t heads, uint32_t kv_heads,
                               uint32_t head_dim, uint32_t half) {
    half % PACK == 0 && head_dim % PACK == 0
        ? rope_and_cache_packs<PACK>(qkv, cos, sin, positions, slots, k_cache, v_cache, heads, kv_heads, head_dim, half)
        : rope_and_cache_packs<1>(qkv, cos, sin, positions, slots, k_cache, v_cache, heads, kv_heads, head_dim, half);
}

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }

// The approximation that models mean by gelu_pytorch_tanh (Hendrycks and Gimpel, 2016).
__device__ float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); }

// A thread a pack, or several. activated [rows, width] = activation(gate) up, from rows of gate, then up, [rows, 2 width].
template <uint32_t N, typename T>
__device__ void gated_packs(const T *gate_up, T *activated, uint32_t rows, uint32_t width, uint32_t gelu) {
    const uint32_t step = gridDim.x * blockDim.x;
    for (uint32_t index = blockIdx.x * blockDim.x + threadIdx.x; index < rows * (width / N); index += step) {
        const size_t row = index / (width / N), column = index % (width / N) * N;
        const T *from = gate_up + row * 2 * width + column;
        const Pack<T, N> gate = load<N>(from), up = load<N>(from + width);
        Pack<T, N> y;
        for (uint32_t j = 0; j < N; j++) {
            const float x = widen(gate.entry[j]);
            y.entry[j] = narrow<T>((gelu ? gelu_tanh(x) : silu(x)) * widen(up.entry[j]));
        }
        store(activated + row * width + column, y);
    }
}

template <typename T>
__device__ void gated(const T *gate_up, T *activated, uint32_t rows, uint32_t width, uint32_t gelu) {
    width % PACK == 0 ? gated_packs<PACK>(gate_up, activated, rows, width, gelu)
                      : gated_packs<1>(gate_up, activated, rows, width, gelu);
}

// The largest over a block of whole warps, on each of its threads.
__device__ float block_max(float x) {
    __shared__ float of_warps[WARP];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    __syncthreads();
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    x = lane < blockDim.x / WARP ? of_warps[lane] : -INFINITY;
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// Parts whose weights join_parts keeps at a time.
constexpr uint32_t JOINED_PARTS = 128;

// A block a head of a sequence, of a thread an entry at least. out [sequences, heads, head_dim] = attention to all keys, from
// attention to parts of them, [parts, heads, head_dim], and the logarithms of their sums of weights, [parts, heads]. Those of parts
// without keys are not finite. A sequence's parts are those from parts_before[sequence] on, up to those of the next.
template <typename T>
__device__ void join_parts(const T *of_parts, const float *log_sums, const uint32_t *parts_before, T *out, uint32_t heads,
                           uint32_t head_dim) {
    __shared__ float weights[JOINED_PARTS];
    const uint32_t sequence = blockIdx.x / heads, head = blockIdx.x % heads;
    const uint32_t first = parts_before[sequence], parts = parts_before[sequence + 1] - first;
    const auto row = [&](uint32_t part) { return (size_t)(first + part) * heads + head; };
    float largest = -INFINITY;
    for (uint32_t part = threadIdx.x; part < parts; part += blockDim.x) {
        const float log_sum = log_sums[row(part)];
        if (log_sum - log_sum == 0.0f) largest = fmaxf(largest, log_sum);
    }
    largest = block_max(largest);
    float sum = 0.0f, value = 0.0f;
    for (uint32_t chunk = 0; chunk < parts; chunk += JOINED_PARTS) {
        const uint32_t count = parts - chunk < JOINED_PARTS ? parts - chunk : JOINED_PARTS;
        __syncthreads();
        for (uint32_t part = threadIdx.x; part < count; part += blockDim.x) {
            const float log_sum = log_sums[row(chunk + part)];
            weights[part] = log_sum - log_sum == 0.0f ? expf(log_sum - largest) : 0.0f;
        }
        __syncthreads();
        if (threadIdx.x >= head_dim) continue;
        // Loads of several parts are under way at a time: nothing depends on the one before.
#pragma unroll 8
        for (uint32_t part = 0; part < count; part++) {
            const float weight = weights[part], entry = widen(of_parts[row(chunk + part) * head_dim + threadIdx.x]);
            sum += weight;
            value += weight == 0.0f ? 0.0f : weight * entry;
        }
    }
    if (threadIdx.x < head_dim)
        out[(size_t)blockIdx.x * head_dim + threadIdx.x] = narrow<T>(sum == 0.0f ? 0.0f : value / sum);
}

// A thread an entry. Every row of y, [rows, width], becomes bias: what a product is then added to.
template <typename T>
__device__ void fill_rows(const float *bias, T *y, uint32_t rows, uint32_t width) {
    const size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < (size_t)rows * width) y[index] = narrow<T>(bias[index % width]);
}

}  // namespace

// A block a row, of 32-bit words: row i of to, [rows, width], becomes row rows[i] of from.
extern "C" __global__ void gather_rows(const uint32_t *from, const uint32_t *rows, uint32_t *to, uint32_t width) {
    const uint32_t *source = from + (size_t)rows[blockIdx.x] * width;
    uint32_t *target = to + (size_t)blockIdx.x * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) target[i] = source[i];
}

// A thread an entry. Columns from first_column on of whole, [rows, whole_width], become part, [rows, width].
extern "C" __global__ void place_columns(const float *part, float *whole, uint32_t rows, uint32_t width,
                                         uint32_t whole_width, uint32_t first_column) {
    const size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < (size_t)rows * width) whole[index / width * whole_width + first_column + index % width] = part[index];
}

// A thread an entry: x becomes cap tanh(x / cap).
extern "C" __global__ void softcap(float *x, uint64_t count, float cap) {
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) x[index] = cap * tanhf(x[index] / cap);
}

#define FOR_TYPE(suffix, T)                                                                                             \
    ROW_KERNEL embed_##suffix(const T *table, const uint32_t *token_ids, const uint32_t *chosen, float *residual,       \
                              uint32_t hidden, uint32_t first, uint32_t end, float scale) {                             \
        embed(table, token_ids, chosen, residual, hidden, first, end, scale);                                           \
    }                                                                                                                   \
    ROW_KERNEL add_rms_norm_##suffix(float *residual, const T *delta, const float *delta_norm, const float *weight,     \
                                     T *normed, uint32_t hidden, float eps) {                                           \
        add_rms_norm(residual, delta, delta_norm, weight, normed, hidden, eps);                                         \
    }                                                                                                                   \
    extern "C" __global__ void norm_heads_##suffix(T *x, const float *weight, uint32_t rows, uint32_t row_width,        \
                                                   uint32_t first_entry, uint32_t heads, uint32_t head_dim,             \
                                                   float eps) {                                                         \
        norm_heads(x, weight, rows, row_width, first_entry, heads, head_dim, eps);                                      \
    }                                                                                                                   \
    ROW_KERNEL rope_and_cache_##suffix(T *qkv, const float *cos, const float *sin, const uint32_t *positions,           \
                                       const uint32_t *slots, T *k_cache, T *v_cache, uint32_t heads,                   \
                                       uint32_t kv_heads, uint32_t head_dim, uint32_t half) {                           \
        rope_and_cache(qkv, cos, sin, positions, slots, k_cache, v_cache, heads, kv_heads, head_dim, half);             \
    }                                                                                                                   \
    extern "C" __global__ void gated_##suffix(const T *gate_up, T *activated, uint32_t rows, uint32_t width,            \
                                              uint32_t gelu) {                                                          \
        gated(gate_up, activated, rows, width, gelu);                                                                   \
    }                                                                                                                   \
    ROW_KERNEL join_parts_##suffix(const T *of_parts, const float *log_sums, const uint32_t *parts_before, T *out,      \
                                   uint32_t heads, uint32_t head_dim) {                                                 \
        join_parts(of_parts, log_sums, parts_before, out, heads, head_dim);                                             \
    }                                                                                                                   \
    extern "C" __global__ void fill_rows_##suffix(const float *bias, T *y, uint32_t rows, uint32_t width) {             \
        fill_rows(bias, y, rows, width);                                                                                \
    }

FOR_TYPE(f16, __half)
FOR_TYPE(bf16, __nv_bfloat16)
