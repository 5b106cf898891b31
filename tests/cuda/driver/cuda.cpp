// The driver's own functions (libcuda.so.1).

#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <mutex>
#include <string>

namespace {

constexpr int SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500;

std::mutex guard;
std::map<uint64_t, size_t> allocations;
size_t allocated_bytes = 0;
std::map<std::string, int> calls;

size_t number(const char *variable, size_t otherwise) {
    const char *text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

size_t memory_bytes() { return number("STAND_IN_MEMORY", (size_t)1 << 30); }
int devices() { return (int)number("STAND_IN_DEVICES", 1); }

// A context or stream is never looked into.
void *const SOMETHING = (void *)0x5eed;

int allocate(uint64_t *address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    if (allocated_bytes + bytes > memory_bytes()) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (memory == nullptr) return OUT_OF_MEMORY;
    // What is not written first shows.
    memset(memory, 0xff, bytes);
    allocations[(uint64_t)memory] = bytes;
    allocated_bytes += bytes;
    *address = (uint64_t)memory;
    stand_in::trace("allocate %zu", bytes);
    return SUCCESS;
}

int release(uint64_t address) {
    std::lock_guard<std::mutex> lock(guard);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return 1;
    allocated_bytes -= found->second;
    allocations.erase(found);
    free((void *)address);
    stand_in::trace("free");
    return SUCCESS;
}

// Whether all bytes are inside one allocation.
bool inside(uint64_t address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    const auto &[start, size] = *--after;
    return address + bytes <= start + size;
}

constexpr int ILLEGAL_ADDRESS = 700;

}  // namespace

void stand_in::trace(const char *format, ...) {
    static FILE *const file = getenv("STAND_IN_TRACE") ? fopen(getenv("STAND_IN_TRACE"), "a") : nullptr;
    if (file == nullptr) return;
    va_list arguments;
    va_start(arguments, format);
    flockfile(file);
    vfprintf(file, format, arguments);
    fputc('\n', file);
    fflush(file);
    funlockfile(file);
    va_end(arguments);
}

int stand_in::failure(const char *call) {
    const char *wanted = getenv("STAND_IN_FAIL");
    if (wanted == nullptr) return 0;
    const size_t length = strlen(call);
    if (strncmp(wanted, call, length) != 0 || wanted[length] != ':') return 0;
    char *rest;
    const long nth = strtol(wanted + length + 1, &rest, 10);
    std::lock_guard<std::mutex> lock(guard);
    if (++calls[call] != nth) return 0;
    return *rest == ':' ? (int)strtol(rest + 1, nullptr, 10) : ILLEGAL_ADDRESS;
}

API int cuInit(unsigned) {
    FAIL_IF_ASKED;
    return devices() == 0 ? NO_DEVICE : SUCCESS;
}

API int cuDeviceGetCount(int *count) {
    *count = devices();
    return SUCCESS;
}

API int cuDeviceGet(int *device, int ordinal) {
    if (ordinal >= devices()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API int cuDeviceGetName(char *name, int length, int) {
    snprintf(name, length, "Stand-in");
    return SUCCESS;
}

API int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 75: *value = 8; return SUCCESS;   // compute capability, major
        case 76: *value = 0; return SUCCESS;   // and minor
        case 115: *value = 1; return SUCCESS;  // memory pools: allocations are in order of the stream
    }
    fprintf(stderr, "the stand-in driver does not know device attribute %d\n", attribute);
    abort();
}

API int cuDevicePrimaryCtxRetain(void **context, int) {
    FAIL_IF_ASKED;
    *context = SOMETHING;
    return SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void *) { return SUCCESS; }
API int cuCtxGetCurrent(void **context) {
    *context = SOMETHING;
    return SUCCESS;
}
API int cuCtxSynchronize() {
    stand_in::trace("synchronize");
    return SUCCESS;
}

API int cuStreamCreate(void **stream, unsigned) {
    *stream = SOMETHING;
    return SUCCESS;
}
API int cuStreamDestroy_v2(void *) { return SUCCESS; }
API int cuStreamSynchronize(void *) {
    FAIL_IF_ASKED;
    stand_in::trace("synchronize");
    return SUCCESS;
}

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    std::lock_guard<std::mutex> lock(guard);
    *total_bytes = memory_bytes();
    *free_bytes = *total_bytes - allocated_bytes;
    return SUCCESS;
}
API int cuMemAllocAsync(uint64_t *address, size_t bytes, void *) {
    FAIL_IF_ASKED;
    return allocate(address, bytes);
}
API int cuMemFreeAsync(uint64_t address, void *) { return release(address); }

API int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *) {
    if (!inside(address, bytes)) return ILLEGAL_ADDRESS;
    memset((void *)address, value, bytes);
    return SUCCESS;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    FAIL_IF_ASKED;
    if (!inside(to, bytes)) return ILLEGAL_ADDRESS;
    memcpy((void *)to, from, bytes);
    stand_in::trace("copy-in %zu", bytes);
    return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    FAIL_IF_ASKED;
    if (!inside(from, bytes)) return ILLEGAL_ADDRESS;
    memcpy(to, (const void *)from, bytes);
    stand_in::trace("copy-out %zu", bytes);
    return SUCCESS;
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) {
    if (!inside(to, bytes) || !inside(from, bytes)) return ILLEGAL_ADDRESS;
    memmove((void *)to, (const void *)from, bytes);
    stand_in::trace("copy %zu", bytes);
    return SUCCESS;
}

// Modules are empty here: kernels are known by name.
API int cuModuleLoadData(void **module, const void *) {
    FAIL_IF_ASKED;
    *module = SOMETHING;
    return SUCCESS;
}
API int cuModuleUnload(void *) { return SUCCESS; }
API int cuModuleGetFunction(void **function, void *, const char *name) {
    if (!stand_in::knows_kernel(name)) {
        fprintf(stderr, "the stand-in driver has no kernel %s\n", name);
        return NOT_FOUND;
    }
    *function = strdup(name);
    return SUCCESS;
}

API int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned, void *, void **arguments, void **) {
    const char *name = (const char *)function;
    if (const int code = stand_in::failure(name)) return code;
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x == 0 || block_x > 1024 || block_y != 1 || block_z != 1) return 1;
    stand_in::trace("launch %s", name);
    if (stand_in::run_kernel(name, grid_x, block_x, arguments)) return SUCCESS;
    fprintf(stderr, "the stand-in driver has no kernel %s\n", name);
    abort();
}

API int cuGetErrorName(int code, const char **text) {
    switch (code) {
        case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; break;
        case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        default: *text = "an error of the stand-in driver";
    }
    return SUCCESS;
}
API int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }
