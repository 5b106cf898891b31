// Our own kernels by name, run on the host.

#include "cuda_on_host.h"

// With crates/cuda/tests/cuda/host among the include directories.
#include "../../../crates/cuda/src/kernels.cu"
#include "../../../crates/cuda/src/kernels/adjust_logits.cu"
#include "../../../crates/cuda/src/kernels/log_probabilities.cu"
#include "../../../crates/cuda/src/kernels/sampling.cu"

#include "driver.h"

#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace {

using Launch = std::function<std::function<void()>(uint32_t, uint32_t, void **)>;

// Takes a launch's arguments by the kernel's own parameters.
template <typename... Parameters, size_t... I>
Launch run(void (*kernel)(Parameters...), std::index_sequence<I...>) {
    return [kernel](uint32_t blocks, uint32_t threads, void **arguments) {
        const std::tuple<Parameters...> values(*(Parameters *)arguments[I]...);
        return [=] { host::launch(blocks, threads, [&] { std::apply(kernel, values); }); };
    };
}

template <typename... Parameters>
Launch run(void (*kernel)(Parameters...)) {
    return run(kernel, std::index_sequence_for<Parameters...>());
}

#define KERNEL(name) {#name, run(name)}
#define KERNELS(suffix)                                                                                           \
    KERNEL(embed_##suffix), KERNEL(add_rms_norm_##suffix), KERNEL(norm_heads_##suffix),                           \
        KERNEL(rope_and_cache_##suffix), KERNEL(gated_##suffix), KERNEL(join_parts_##suffix), KERNEL(fill_rows_##suffix)

const std::map<std::string, Launch> &kernels() {
    static const std::map<std::string, Launch> all = {
        KERNELS(f16),     KERNELS(bf16),  KERNEL(gather_rows), KERNEL(place_columns),
        KERNEL(softcap), KERNEL(adjust_logits), KERNEL(mask_logits), KERNEL(summarise_rows), KERNEL(chosen_logits),
        KERNEL(sample),
    };
    return all;
}

}  // namespace

bool stand_in::knows_kernel(const char *name) { return kernels().count(name) != 0; }

std::function<void()> stand_in::kernel(const char *name, uint32_t blocks, uint32_t threads, void **arguments) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : found->second(blocks, threads, arguments);
}
