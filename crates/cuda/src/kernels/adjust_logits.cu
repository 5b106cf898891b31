// Biases and penalties on the logits of the tokens that rows list, before one is chosen.
//
// The same operations in the same order as in crates/cpu/src/logit_adjustments.rs, each rounded by itself, so that both devices have the
// same bits. A row without options has no block, and nothing here is as long as the vocabulary.

#include "adjustments.cuh"

// A block for each row that is listed, of logits, [rows, width]. No token is twice among the biases of a row, nor among its counts. The
// logits that entries find go to `originals`, one an entry.
ROW_KERNEL adjust_logits(float *logits, const RowAdjustments *rows, const TokenEntry *entries, float *originals,
                         uint32_t width) {
    const RowAdjustments adjusted = rows[blockIdx.x];
    float *row = logits + (size_t)adjusted.row * width;
    for (uint32_t i = adjusted.biased + threadIdx.x; i < adjusted.counted; i += blockDim.x) {
        const TokenEntry entry = entries[i];
        if (entry.token >= width) continue;
        originals[i] = row[entry.token];
        row[entry.token] = __fadd_rn(originals[i], __uint_as_float(entry.value));
    }
    // A token may have a bias and a count, of which other threads take care.
    __syncthreads();
    for (uint32_t i = adjusted.counted + threadIdx.x; i < adjusted.end; i += blockDim.x) {
        const TokenEntry entry = entries[i];
        if (entry.token >= width) continue;
        const float x = row[entry.token];
        originals[i] = x;
        float changed = x > 0.0f ? __fdiv_rn(x, adjusted.repetition) : __fmul_rn(x, adjusted.repetition);
        if (entry.value > 0) {
            changed = __fsub_rn(changed, __fmul_rn(adjusted.frequency, (float)entry.value));
            changed = __fsub_rn(changed, adjusted.presence);
        }
        row[entry.token] = changed;
    }
}
