// A profiler that NVTX is told of by NVTX_INJECTION64_PATH: it writes ranges into the trace (nvtxDetail/nvtxTypes.h of NVTX 3).

#include "driver.h"

#include <stdint.h>

#include <atomic>

namespace {

// Entries of the module's table by NvtxCallbackIdCore.
constexpr int MODULE_CORE = 1, CORE_SIZE = 16, RANGE_START_A = 5, RANGE_END = 7, RANGE_PUSH_A = 9, RANGE_POP = 11;

using Function = void (*)();

struct Callbacks {
    size_t struct_size;
    int (*module_function_table)(int module, Function ***table, unsigned *size);
};

std::atomic<uint64_t> ranges{0};

uint64_t start(const char *name) {
    const uint64_t range = ++ranges;
    stand_in::trace("range-start %lu %s", (unsigned long)range, name);
    return range;
}
void end(uint64_t range) { stand_in::trace("range-end %lu", (unsigned long)range); }
int push(const char *name) {
    stand_in::trace("range-push %s", name);
    return 0;
}
int pop() {
    stand_in::trace("range-pop");
    return 0;
}

}  // namespace

API int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
    const Callbacks *const callbacks = (const Callbacks *)export_table(1);
    if (callbacks == nullptr || callbacks->struct_size < sizeof(Callbacks)) return 0;
    Function **table;
    unsigned size;
    if (!callbacks->module_function_table(MODULE_CORE, &table, &size) || size < CORE_SIZE) return 0;
    *table[RANGE_START_A] = (Function)start;
    *table[RANGE_END] = (Function)end;
    *table[RANGE_PUSH_A] = (Function)push;
    *table[RANGE_POP] = (Function)pop;
    return 1;
}
