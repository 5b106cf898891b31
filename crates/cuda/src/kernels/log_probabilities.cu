// Log-probabilities of the token that was chosen from a row, and of the likeliest ones, before anything changed its logits.
//
// The definitions of crates/cpu/src/log_probabilities.rs: what the host gets is the largest logit, the sum of all weights at temperature 1,
// which does not depend on its order, and logits. Rows that nobody asks about have no block.

#include "adjustments.cuh"
#include "token_weight.cuh"

namespace {

constexpr uint32_t MOST_LIKELIEST = 20;

// The bytes of the host's `LogprobsRow`.
struct LogprobsRow {
    uint32_t row, count;
};

// The bytes of the host's `RowSummary`.
struct RowSummary {
    float highest, chosen;
    uint64_t sum;
    uint32_t tokens[MOST_LIKELIEST];
    float logits[MOST_LIKELIEST];
};

// The largest logit that comes behind `before` and its token, in order of logits and then of tokens; all of them come behind a token of
// `width`. A block looks for it, and each of its threads gets it. The token is `width` where there is none.
__device__ void next_likeliest(const float *row, uint32_t width, float before, uint32_t before_token, float &logit, uint32_t &token) {
    __shared__ float logit_of_warps[WARP];
    __shared__ uint32_t token_of_warps[WARP];
    const auto behind = [](float a, uint32_t a_token, float b, uint32_t b_token) {
        return b < a || (b == a && b_token > a_token);
    };
    const bool first = before_token == width;
    float best = 0.0f;
    uint32_t index = width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = row[i];
        if (x != x || !(first || behind(before, before_token, x, i))) continue;
        if (index == width || x > best) best = x, index = i;
    }
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int last = 0; last < 2; last++) {
        for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) {
            const float x = __shfl_xor_sync(ALL_LANES, best, distance);
            const uint32_t i = __shfl_xor_sync(ALL_LANES, index, distance);
            if (i != width && (index == width || behind(x, i, best, index))) best = x, index = i;
        }
        if (last) break;
        if (lane == 0) logit_of_warps[warp] = best, token_of_warps[warp] = index;
        __syncthreads();
        const bool there = lane < blockDim.x / WARP;
        best = there ? logit_of_warps[lane] : 0.0f;
        index = there ? token_of_warps[lane] : width;
    }
    logit = best, token = index;
    // Nobody may write before all have read.
    __syncthreads();
}

}  // namespace

// A block of whole warps for each row that is listed, of logits, [rows, width]: its likeliest tokens and the sum of its weights.
ROW_KERNEL summarise_rows(const float *logits, const LogprobsRow *listed, RowSummary *summaries, uint32_t width) {
    __shared__ uint64_t sums[WARP];
    const LogprobsRow wanted = listed[blockIdx.x];
    const float *row = logits + (size_t)wanted.row * width;
    RowSummary &summary = summaries[blockIdx.x];
    float highest, logit = 0.0f;
    uint32_t token = width;
    next_likeliest(row, width, logit, token, highest, token);
    logit = highest;
    for (uint32_t index = 0; index < wanted.count && index < MOST_LIKELIEST; index++) {
        if (index > 0 && token != width) next_likeliest(row, width, logit, token, logit, token);
        if (threadIdx.x == 0) summary.tokens[index] = token, summary.logits[index] = logit;
        // Fewer tokens than were asked for: the rest of the list stays as it is once the vocabulary is at its end.
        if (token == width) break;
    }
    const float units_at_1 = (float)(1 << FRACTION_BITS) * 1.44269504088896340736f;
    uint64_t own = 0;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float units = __fmul_rn(__fsub_rn(highest, row[i]), units_at_1);
        own += weight(units < FARTHEST ? (uint32_t)units : FARTHEST);
    }
    own = warp_sum(own);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = own;
    __syncthreads();
    if (threadIdx.x > 0) return;
    uint64_t sum = 0;
    for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) sum += sums[warp];
    summary.highest = highest, summary.sum = sum;
}

// A block for each row that is listed: the logit that its token, of tokens, [rows], had before it was adjusted. `adjusted` are
// `adjusted_rows` rows, `originals` the logits that their entries found.
ROW_KERNEL chosen_logits(const float *logits, const LogprobsRow *listed, const uint32_t *tokens, const RowAdjustments *adjusted,
                         const TokenEntry *entries, const float *originals, uint32_t adjusted_rows, RowSummary *summaries,
                         uint32_t width) {
    const uint32_t row = listed[blockIdx.x].row, token = tokens[row];
    if (token == NO_TOKEN) return;
    float &chosen = summaries[blockIdx.x].chosen;
    if (threadIdx.x == 0) chosen = logits[(size_t)row * width + token];
    __syncthreads();
    for (uint32_t index = 0; index < adjusted_rows; index++) {
        const RowAdjustments changes = adjusted[index];
        if (changes.row != row) continue;
        // A token may have a bias and a count, and the bias was added first.
        for (uint32_t i = changes.counted + threadIdx.x; i < changes.end; i += blockDim.x) {
            if (entries[i].token == token) chosen = originals[i];
        }
        __syncthreads();
        for (uint32_t i = changes.biased + threadIdx.x; i < changes.counted; i += blockDim.x) {
            if (entries[i].token == token) chosen = originals[i];
        }
    }
}
