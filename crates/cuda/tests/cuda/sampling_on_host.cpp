// The kernels that adjust logits and choose tokens (crates/cuda/src/kernels) on the host: batches from standard input; tokens, adjusted
// logits and summaries of rows to standard output.
//
// A batch is six 32-bit numbers, rows, width, threads of a block, adjusted rows, their entries, and rows with log-probabilities; then the
// choices, the logits of all rows, the adjusted rows, the entries and the rows with log-probabilities.

#include "cuda_on_host.h"

#include "../../src/kernels/adjust_logits.cu"
#include "../../src/kernels/log_probabilities.cu"
#include "../../src/kernels/sampling.cu"

#include <stdio.h>

int main() {
    uint32_t sizes[6];
    while (fread(sizes, sizeof sizes, 1, stdin) == 1) {
        const uint32_t rows = sizes[0], width = sizes[1], threads = sizes[2];
        std::vector<TokenChoice> choices(rows);
        std::vector<float> logits((size_t)rows * width);
        std::vector<uint32_t> tokens(rows, 77);
        if (fread(choices.data(), sizeof(TokenChoice), rows, stdin) != rows) return 1;
        if (fread(logits.data(), sizeof(float), logits.size(), stdin) != logits.size()) return 1;
        std::vector<RowAdjustments> adjusted(sizes[3]);
        std::vector<TokenEntry> entries(sizes[4]);
        if (fread(adjusted.data(), sizeof(RowAdjustments), sizes[3], stdin) != sizes[3]) return 1;
        if (fread(entries.data(), sizeof(TokenEntry), sizes[4], stdin) != sizes[4]) return 1;
        std::vector<LogprobsRow> wanted(sizes[5]);
        if (fread(wanted.data(), sizeof(LogprobsRow), sizes[5], stdin) != sizes[5]) return 1;
        std::vector<float> originals(entries.size());
        std::vector<RowSummary> summaries(wanted.size());
        if (sizes[5] > 0) {
            host::launch(sizes[5], threads, [&] { summarise_rows(logits.data(), wanted.data(), summaries.data(), width); });
        }
        if (sizes[3] > 0) {
            host::launch(sizes[3], threads,
                         [&] { adjust_logits(logits.data(), adjusted.data(), entries.data(), originals.data(), width); });
        }
        host::launch(rows, threads, [&] { sample(logits.data(), choices.data(), tokens.data(), width); });
        if (sizes[5] > 0) {
            host::launch(sizes[5], threads, [&] {
                chosen_logits(logits.data(), wanted.data(), tokens.data(), adjusted.data(), entries.data(), originals.data(),
                              sizes[3], summaries.data(), width);
            });
        }
        fwrite(tokens.data(), sizeof(uint32_t), rows, stdout);
        fwrite(logits.data(), sizeof(float), logits.size(), stdout);
        fwrite(summaries.data(), sizeof(RowSummary), summaries.size(), stdout);
    }
}
