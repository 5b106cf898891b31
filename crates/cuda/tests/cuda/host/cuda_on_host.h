// Enough of CUDA C++ to run a kernel on the host: the threads of a block take turns as coroutines, so barriers and shuffles mean
// what they mean on a GPU. One block at a time; speed is no concern.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static thread_local

struct Index {
    uint32_t x;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr size_t STACK_BYTES = 32 << 10;
constexpr uint32_t WARP = 32;

// A thread of a block: entered once through its context, and from then on by jumps, which ask nothing of the system. It runs one
// kernel after the other.
struct Thread {
    std::unique_ptr<char[]> stack;
    jmp_buf here;
    bool done;
    // Whose turn it is of what is shown.
    bool turn;
};

// Those of all blocks that were launched from a thread of the host.
inline thread_local std::vector<Thread> threads;

// A block under way.
struct Block {
    jmp_buf scheduler;
    // Threads that have come to the barrier, of the block and of each warp, and how often it has opened.
    uint32_t arrived = 0, opened = 0;
    std::vector<uint32_t> warp_arrived, warp_opened;
    // What each thread shows to the others of its warp, in turns: nobody writes to the one that others may still read.
    std::vector<uint32_t> shown[2];
    const std::function<void()> *kernel = nullptr;
};
inline thread_local Block *block = nullptr;

inline void yield() {
    if (_setjmp(threads[threadIdx.x].here) == 0) _longjmp(block->scheduler, 1);
}

inline void wait(uint32_t &arrived, uint32_t &opened, uint32_t count) {
    const uint32_t before = opened;
    if (++arrived == count) {
        arrived = 0;
        opened++;
    } else {
        while (opened == before) yield();
    }
}

inline void wait_for_warp() {
    const uint32_t warp = threadIdx.x / WARP;
    wait(block->warp_arrived[warp], block->warp_opened[warp], WARP);
}

inline void run_kernels() {
    for (;;) {
        (*block->kernel)();
        threads[threadIdx.x].done = true;
        yield();
    }
}

// Lets a thread run until it waits or is done.
inline void resume(uint32_t index) {
    Thread &thread = threads[index];
    threadIdx.x = index;
    if (_setjmp(block->scheduler) != 0) return;
    if (thread.stack) _longjmp(thread.here, 1);
    thread.stack = std::make_unique<char[]>(STACK_BYTES);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread.stack.get();
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, run_kernels, 0);
    setcontext(&context);
}

// Runs `kernel` for every thread of every block.
inline void launch(uint32_t blocks, uint32_t count, const std::function<void()> &kernel) {
    if (threads.size() < count) threads.resize(count);
    Block state;
    for (auto &shown : state.shown) shown.resize(count);
    state.kernel = &kernel;
    block = &state;
    blockDim.x = count;
    gridDim.x = blocks;
    for (uint32_t index = 0; index < blocks; index++) {
        state.arrived = 0;
        state.warp_arrived.assign(count / WARP + 1, 0);
        state.warp_opened.assign(count / WARP + 1, 0);
        for (uint32_t thread = 0; thread < count; thread++) threads[thread].done = threads[thread].turn = false;
        blockIdx.x = index;
        for (bool running = true; running;) {
            running = false;
            for (uint32_t thread = 0; thread < count; thread++) {
                if (threads[thread].done) continue;
                running = true;
                resume(thread);
            }
        }
    }
    block = nullptr;
}

}  // namespace host

inline void __syncthreads() { host::wait(host::block->arrived, host::block->opened, blockDim.x); }

template <typename T>
T __shfl_xor_sync(uint32_t, T value, uint32_t distance) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    const uint32_t me = threadIdx.x;
    auto &shown = host::block->shown[host::threads[me].turn ^= true];
    __builtin_memcpy(&shown[me], &value, sizeof(T));
    host::wait_for_warp();
    T other;
    __builtin_memcpy(&other, &shown[me ^ distance], sizeof(T));
    return other;
}

inline uint32_t atomicAdd(uint32_t *to, uint32_t amount) {
    const uint32_t before = *to;
    *to += amount;
    return before;
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }

// Rounded by themselves where compilers may not contract them: -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

inline float __uint_as_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
