// Lists of the logits that a step changes, as the host has them.
#pragma once

#include "block.cuh"

namespace {

// The bytes of the host's `RowAdjustments`.
struct RowAdjustments {
    uint32_t row, biased, counted, end;
    float repetition, frequency, presence;
};

// The bytes of the host's `TokenEntry`.
struct TokenEntry {
    uint32_t token, value;
};

}  // namespace
