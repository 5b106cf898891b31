// The next token of each row of logits: temperature, min-p, top-k, top-p and a draw, in whole numbers.
//
// The same definitions as in crates/cpu/src/token_choice.rs, whose token this is from the same logits, bit for bit: sums of whole
// numbers do not depend on their order, and what is in single precision is products and sums that are each rounded by themselves.
// The last candidate that is kept is found digit by digit of its distance (radix select: Alabi et al., "Fast k-selection algorithms
// for graphics processing units", 2012), and the drawn one by halving the row into parts with known sums. A row is read twice for
// temperature alone, three times more for top-k, and three times more for top-p.

#include "token_weight.cuh"

namespace {

constexpr uint32_t DIGIT_BITS = 8, BINS = 1 << DIGIT_BITS;

// The bytes of the host's `TokenChoice`.
struct TokenChoice {
    float units_per_logit;
    uint32_t top_k, farthest, padding;
    uint64_t top_p, draw;
};

// Adds to one of a block's sums, of which the halves lie apart: units that add 32 bits are what shared memory has.
__device__ void add(uint32_t *low, uint32_t *high, uint64_t amount) {
    const uint32_t part = (uint32_t)amount, before = atomicAdd(low, part);
    const uint32_t carried = (uint32_t)(amount >> 32) + (before + part < before);
    if (carried) atomicAdd(high, carried);
}

// The first of `count` sums with which they reach `wanted`, which becomes what is wanted of that one alone.
template <typename Sum> __device__ uint32_t reaching(uint32_t count, uint64_t &wanted, Sum sum) {
    uint32_t index = 0;
    for (; index + 1 < count && sum(index) < wanted; index++) wanted -= sum(index);
    return index;
}

// Calls `visit` with each token of [first, end) and its logit, spread over the lanes of a warp. Both are multiples of N.
template <uint32_t N, typename Visit>
__device__ void by_lanes(const float *logits, uint32_t first, uint32_t end, Visit visit) {
    for (uint32_t i = first + threadIdx.x % WARP * N; i < end; i += WARP * N) {
        const Pack<float, N> x = load<N>(logits + i);
        for (uint32_t j = 0; j < N; j++) visit(i + j, x.entry[j]);
    }
}

__device__ uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Tokens of a row that may be chosen. A block works on it, and every one of its threads has the same.
template <uint32_t N> struct Candidates {
    const float *logits;
    uint32_t width;
    float highest, units_per_logit;
    // Tokens that are nearer are candidates, and as far away those before `end`.
    uint32_t farthest, end;

    __device__ uint32_t distance(float logit) const {
        const float units = __fmul_rn(__fsub_rn(highest, logit), units_per_logit);
        return units < FARTHEST ? (uint32_t)units : FARTHEST;
    }

    __device__ bool has(uint32_t token, uint32_t distance) const {
        return distance < farthest || (distance == farthest && token < end);
    }

    // How many tokens a warp takes of so many.
    __device__ static uint32_t part_of(uint32_t count) {
        const uint32_t warps = blockDim.x / WARP;
        return ((count + warps - 1) / warps + N - 1) / N * N;
    }

    // The first token, in order of id, with which the amounts of candidates reach what is `wanted` of the sum of all.
    template <typename Amount, typename Wanted> __device__ uint32_t first_reaching(Amount amount, Wanted wanted) const {
        __shared__ uint64_t sums[WARP], rest;
        __shared__ uint32_t chosen;
        uint32_t first = 0, last = width;
        for (bool whole = true; whole || last - first > N; whole = false) {
            const uint32_t part = part_of(last - first), begin = least(first + threadIdx.x / WARP * part, last);
            uint64_t own = 0;
            by_lanes<N>(logits, begin, least(begin + part, last), [&](uint32_t token, float logit) {
                const uint32_t away = distance(logit);
                if (has(token, away)) own += amount(away);
            });
            own = warp_sum(own);
            if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = own;
            __syncthreads();
            if (threadIdx.x == 0) {
                const uint32_t warps = blockDim.x / WARP;
                if (whole) {
                    uint64_t all = 0;
                    for (uint32_t warp = 0; warp < warps; warp++) all += sums[warp];
                    rest = wanted(all);
                }
                uint64_t left = rest;
                chosen = reaching(warps, left, [&](uint32_t warp) { return sums[warp]; });
                rest = left;
            }
            __syncthreads();
            first = least(first + chosen * part, last);
            last = least(first + part, last);
            // Nobody may write before all have read.
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            uint64_t left = rest;
            chosen = first + reaching(last - first, left, [&](uint32_t index) {
                         const uint32_t away = distance(logits[first + index]);
                         return has(first + index, away) ? amount(away) : 0;
                     });
        }
        __syncthreads();
        const uint32_t token = chosen;
        __syncthreads();
        return token;
    }

    // Keeps the fewest candidates, nearest first, whose amounts reach what is `wanted` of the sum of all.
    template <typename Amount, typename Wanted> __device__ void keep(Amount amount, Wanted wanted) {
        __shared__ uint32_t low[BINS], high[BINS], digit;
        __shared__ uint64_t sums[WARP], rest, as_far;
        constexpr uint32_t EACH = BINS / WARP;
        const auto bin = [&](uint32_t index) { return (uint64_t)high[index] << 32 | low[index]; };
        const uint32_t part = part_of(width), begin = least(threadIdx.x / WARP * part, width);
        uint32_t prefix = 0;
        for (uint32_t shift = 3 * DIGIT_BITS; shift > 0;) {
            shift -= DIGIT_BITS;
            for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x) low[i] = high[i] = 0;
            __syncthreads();
            by_lanes<N>(logits, begin, least(begin + part, width), [&](uint32_t token, float logit) {
                const uint32_t away = distance(logit), index = (away >> shift) % BINS;
                if (away >> (shift + DIGIT_BITS) == prefix && has(token, away)) add(&low[index], &high[index], amount(away));
            });
            __syncthreads();
            if (threadIdx.x < WARP) {
                uint64_t sum = 0;
                for (uint32_t i = 0; i < EACH; i++) sum += bin(threadIdx.x * EACH + i);
                sums[threadIdx.x] = sum;
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                uint64_t left = 0;
                if (shift == 2 * DIGIT_BITS) {
                    for (uint32_t i = 0; i < WARP; i++) left += sums[i];
                    left = wanted(left);
                } else {
                    left = rest;
                }
                const uint32_t group = reaching(WARP, left, [&](uint32_t i) { return sums[i]; }) * EACH;
                digit = group + reaching(EACH, left, [&](uint32_t i) { return bin(group + i); });
                rest = left, as_far = bin(digit);
            }
            __syncthreads();
            prefix = prefix << DIGIT_BITS | digit;
        }
        // Of those that are equally far, the ones with the lowest ids.
        const uint64_t each = amount(prefix), kept = (rest + each - 1) / each;
        const bool some = kept * each < as_far;
        // Nobody may write before all have read.
        __syncthreads();
        uint32_t until = prefix == farthest ? end : width;
        if (some) {
            const auto at = [prefix](uint32_t away) { return (uint64_t)(away == prefix); };
            until = first_reaching(at, [kept](uint64_t) { return kept; }) + 1;
        }
        farthest = prefix, end = until;
    }

    __device__ uint32_t choose(const TokenChoice &choice) {
        const auto by_weight = [](uint32_t away) { return weight(away); };
        if (choice.top_k < width) {
            const uint64_t most = choice.top_k;
            // Min-p may have left fewer.
            keep([](uint32_t) { return (uint64_t)1; }, [most](uint64_t whole) { return most < whole ? most : whole; });
        }
        if (choice.top_p != ~(uint64_t)0) {
            const uint64_t share = choice.top_p;
            keep(by_weight, [share](uint64_t whole) {
                const uint64_t wanted = __umul64hi(whole, share);
                return wanted > 0 ? wanted : 1;
            });
        }
        const uint64_t draw = choice.draw;
        return first_reaching(by_weight, [draw](uint64_t whole) { return (uint64_t)__umul64hi(whole, draw) + 1; });
    }
};

// The largest of a thread's part of a row, and where it is: the first of several, width where there is none. Whether there is a NaN.
template <uint32_t N>
__device__ bool largest_of_part(const float *row, uint32_t width, float &largest, uint32_t &index) {
    bool any_nan = false;
    for (uint32_t i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        const Pack<float, N> x = load<N>(row + i);
        for (uint32_t j = 0; j < N; j++) {
            const bool number = x.entry[j] == x.entry[j];
            any_nan |= !number;
            if (number && (index == width || x.entry[j] > largest)) largest = x.entry[j], index = i + j;
        }
    }
    return any_nan;
}

template <uint32_t N> __device__ uint32_t sample_row(const float *row, uint32_t width, const TokenChoice &choice) {
    __shared__ float largest_of_warps[WARP];
    __shared__ uint32_t index_of_warps[WARP], nan_in_row;
    if (threadIdx.x == 0) nan_in_row = 0;
    __syncthreads();
    float largest = 0.0f;
    uint32_t index = width;
    // Several threads may write, the same number.
    if (largest_of_part<N>(row, width, largest, index)) nan_in_row = 1;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int last = 0; last < 2; last++) {
        for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) {
            const float x = __shfl_xor_sync(ALL_LANES, largest, distance);
            const uint32_t i = __shfl_xor_sync(ALL_LANES, index, distance);
            if (i != width && (index == width || x > largest || (x == largest && i < index))) largest = x, index = i;
        }
        if (last) break;
        if (lane == 0) largest_of_warps[warp] = largest, index_of_warps[warp] = index;
        __syncthreads();
        const bool there = lane < blockDim.x / WARP;
        largest = there ? largest_of_warps[lane] : 0.0f;
        index = there ? index_of_warps[lane] : width;
    }
    // Infinity minus itself is NaN.
    if (index == width || largest - largest != 0.0f) return NO_TOKEN;
    if (choice.units_per_logit == 0.0f) return index;
    if (nan_in_row) return NO_TOKEN;
    return Candidates<N>{row, width, largest, choice.units_per_logit, choice.farthest, width}.choose(choice);
}

}  // namespace

// A block of two whole warps or more a row of logits, [rows, width]: its token as `choices`, [rows], say, into tokens, [rows]. NO_TOKEN where
// the largest logit is not finite, or any is NaN and the likeliest token is not all that is asked for.
ROW_KERNEL sample(const float *logits, const TokenChoice *choices, uint32_t *tokens, uint32_t width) {
    const float *row = logits + (size_t)blockIdx.x * width;
    const TokenChoice choice = choices[blockIdx.x];
    const uint32_t token =
        width % PACK == 0 ? sample_row<PACK>(row, width, choice) : sample_row<1>(row, width, choice);
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}

// A block a row of logits, [_, width], that has a mask: the row's number is in `rows`, and its mask in `bits`, [masks, words]. What bit i % 32 of
// word i / 32 does not allow becomes minus infinity.
ROW_KERNEL mask_logits(float *logits, const uint32_t *rows, const uint32_t *bits, uint32_t width, uint32_t words) {
    float *row = logits + (size_t)rows[blockIdx.x] * width;
    const uint32_t *mask = bits + (size_t)blockIdx.x * words;
    for (uint32_t token = threadIdx.x; token < width; token += blockDim.x) {
        if (!(mask[token / WARP] >> (token % WARP) & 1)) row[token] = -INFINITY;
    }
}
