// Sees each launch of FlashAttention's, of which candle-flash-attn tells nothing: its `error.h` asks the runtime for the last error
// after each launch, which clears it, and drops the answer. `scripts/nvcc-in-part` includes this before each of its files; that question
// is then the one below.
#pragma once

#include <cstddef>
#include <type_traits>

#include <cuda_runtime.h>

// Launches of the calling thread: ranks launch from threads of their own.
struct FlashjobLaunches {
    // The first error since it was taken last.
    cudaError_t error = cudaSuccess;
    // Blocks of the last kernel that a processor holds at a time, where that is wanted.
    int resident_blocks = 0;
    bool wants_blocks = false;
};

inline FlashjobLaunches &flashjob_launches() {
    static thread_local FlashjobLaunches of_thread;
    return of_thread;
}

template <typename Kernel>
cudaError_t flashjob_launched(Kernel kernel, int threads, size_t shared_bytes) {
    const cudaError_t error = cudaGetLastError();
    FlashjobLaunches &launches = flashjob_launches();
    if (launches.error == cudaSuccess) launches.error = error;
    if constexpr (!std::is_same<Kernel, std::nullptr_t>::value) {
        if (launches.wants_blocks)
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&launches.resident_blocks, kernel, threads, shared_bytes);
    }
    return error;
}

// Weak: each file that is compiled with this has them.
extern "C" __attribute__((weak)) int flashjob_take_attention_error(void) {
    const int error = flashjob_launches().error;
    flashjob_launches().error = cudaSuccess;
    return error;
}

extern "C" __attribute__((weak)) void flashjob_want_attention_blocks(int wanted) {
    flashjob_launches().wants_blocks = wanted != 0;
}

extern "C" __attribute__((weak)) int flashjob_attention_blocks(void) { return flashjob_launches().resident_blocks; }

// Where a launch names its kernel in no variable `kernel`, this one is found.
constexpr std::nullptr_t kernel = nullptr;

// With what stands around each launch in `flash_fwd_launch_template.h`.
#define cudaGetLastError() flashjob_launched(kernel, Kernel_traits::kNThreads, smem_size)
