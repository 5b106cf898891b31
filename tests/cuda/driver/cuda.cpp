// The driver's own functions (libcuda.so.1).

#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {

constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
              NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901;

struct Allocation {
    size_t bytes;
    int device;
    bool is_real;
};

// What was recorded, to be done at each launch.
struct Graph {
    std::vector<std::pair<std::string, std::function<int()>>> nodes;
};

// What a copy to pinned memory of the host will have brought, once somebody waits for it.
struct Arrival {
    void *to;
    std::vector<char> bytes;
};

struct Stream {
    int device;
    Graph *recording;
    bool spoiled;
    std::deque<Arrival> arriving;
    // Arrivals since the beginning, the ones that are still on their way included.
    size_t queued;
};

struct Event {
    std::chrono::steady_clock::time_point moment;
    Stream *stream;
    // Arrivals of the stream that were queued before it.
    size_t queued;
};

std::mutex guard;
std::map<uint64_t, Allocation> allocations;
std::map<int, size_t> allocated_bytes;
std::map<std::string, int> calls;
std::map<uint64_t, size_t> pinned;
std::set<Stream *> streams;

// Chosen by the calling thread, from 1 on; 0 is none.
thread_local intptr_t current = 0;

size_t number(const char *variable, size_t otherwise) {
    const char *text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

size_t memory_bytes() { return number("STAND_IN_MEMORY", (size_t)1 << 30); }
std::atomic<bool> only_shapes_left{false};
bool shapes_only() { return only_shapes_left; }

// What nothing is ever looked into.
void *const SOMETHING = (void *)0x5eed;

// What may not be called while a stream is recorded, as it is not in the stream's order.
int refused_while_recording(void *stream) {
    if (((Stream *)stream)->recording == nullptr) return SUCCESS;
    ((Stream *)stream)->spoiled = true;
    return CAPTURE_UNSUPPORTED;
}

// Whether a copy to so much of the host's memory returns before it is done.
bool is_pinned(const void *address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    auto after = pinned.upper_bound((uint64_t)address);
    if (after == pinned.begin()) return false;
    const auto &[start, length] = *--after;
    return (uint64_t)address + bytes <= start + length;
}

// Brings the first arrivals of a stream, up to so many since its beginning.
void bring(Stream *stream, size_t until) {
    std::lock_guard<std::mutex> lock(guard);
    while (!stream->arriving.empty() && stream->queued - stream->arriving.size() < until) {
        const Arrival &first = stream->arriving.front();
        memcpy(first.to, first.bytes.data(), first.bytes.size());
        stand_in::trace("arrive %zu", first.bytes.size());
        stream->arriving.pop_front();
    }
}

int allocate(int device, uint64_t *address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    if (allocated_bytes[device] + bytes > memory_bytes()) return OUT_OF_MEMORY;
    if (allocated_bytes[device] + bytes > number("STAND_IN_SHAPES", SIZE_MAX)) only_shapes_left = true;
    void *memory;
    const bool is_real = !shapes_only();
    if (!is_real) {
        memory = mmap(nullptr, bytes + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    } else {
        memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
        if (memory == nullptr) return OUT_OF_MEMORY;
        // What is not written first shows.
        memset(memory, 0xff, bytes);
    }
    allocations[(uint64_t)memory] = {bytes, device, is_real};
    allocated_bytes[device] += bytes;
    *address = (uint64_t)memory;
    stand_in::trace("allocate %zu", bytes);
    return SUCCESS;
}

int release(uint64_t address) {
    std::lock_guard<std::mutex> lock(guard);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    allocated_bytes[found->second.device] -= found->second.bytes;
    if (found->second.is_real) free((void *)address);
    else munmap((void *)address, found->second.bytes + 4096);
    allocations.erase(found);
    stand_in::trace("free");
    return SUCCESS;
}

int run(const std::string &name, const std::function<int()> &work) {
    if (const int code = stand_in::failure(name.c_str())) return code;
    return shapes_only() ? SUCCESS : work();
}

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
    {
        std::lock_guard<std::mutex> lock(guard);
        if (++calls[call] != nth && nth != 0) return 0;
    }
    // For ever, and without a lock: others go on.
    if (strcmp(rest, ":hang") == 0)
        for (;;) pause();
    return *rest == ':' ? (int)strtol(rest + 1, nullptr, 10) : ILLEGAL_ADDRESS;
}

bool stand_in::is_wrong(const char *name) {
    const char *wanted = getenv("STAND_IN_WRONG");
    return wanted != nullptr && strcmp(wanted, name) == 0;
}

int stand_in::devices() { return (int)number("STAND_IN_DEVICES", 1); }
int stand_in::current_device() { return (int)current - 1; }
int stand_in::device_of(void *stream) { return ((Stream *)stream)->device; }

bool stand_in::inside(int device, const void *address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    auto after = allocations.upper_bound((uint64_t)address);
    if (after == allocations.begin()) return false;
    const auto &[start, allocation] = *--after;
    return allocation.device == device && (uint64_t)address + bytes <= start + allocation.bytes;
}

// Whether STAND_IN_LOSE has this launch, which then does not become a node.
static bool is_lost(const std::string &name) {
    const char *wanted = getenv("STAND_IN_LOSE");
    return wanted != nullptr && name == wanted;
}

void stand_in::demand(void *stream, const void *address, size_t bytes, const char *what) {
    if (inside(device_of(stream), address, bytes)) return;
    fprintf(stderr, "%s was given %zu bytes that are not on device %d\n", what, bytes, device_of(stream));
    abort();
}

int stand_in::queue(void *opaque, const std::string &name, std::function<int()> work) {
    Stream *stream = (Stream *)opaque;
    // As runtime and driver have it: a launch is for the device that the thread has chosen.
    if (current_device() != stream->device) return INVALID_CONTEXT;
    if (stream->recording == nullptr) {
        trace("%s", name.c_str());
        return run(name, work);
    }
    trace("record %s", name.c_str());
    if (is_lost(name)) return SUCCESS;
    stream->recording->nodes.emplace_back(name, std::move(work));
    return SUCCESS;
}

API int cuInit(unsigned) {
    FAIL_IF_ASKED;
    return stand_in::devices() == 0 ? NO_DEVICE : SUCCESS;
}

API int cuDriverGetVersion(int *version) {
    *version = (int)number("STAND_IN_CUDA", 13000);
    return SUCCESS;
}

API int cuDeviceGetCount(int *count) {
    *count = stand_in::devices();
    return SUCCESS;
}

API int cuDeviceGet(int *device, int ordinal) {
    if (ordinal >= stand_in::devices()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API int cuDeviceGetName(char *name, int length, int device) {
    std::string names = getenv("STAND_IN_NAMES") ? getenv("STAND_IN_NAMES") : "";
    for (int skipped = 0; skipped < device && !names.empty(); skipped++) {
        const size_t comma = names.find(',');
        names = comma == std::string::npos ? "" : names.substr(comma + 1);
    }
    names = names.substr(0, names.find(','));
    snprintf(name, length, "%s", names.empty() ? "Stand-in" : names.c_str());
    return SUCCESS;
}

API int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = memory_bytes();
    return SUCCESS;
}

API int cuDeviceGetUuid_v2(void *uuid, int device) {
    memset(uuid, 0, 16);
    ((char *)uuid)[15] = (char)(device + 1);
    return SUCCESS;
}
API int cuDeviceGetUuid(void *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

API int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 8; return SUCCESS;   // processors
        case 75: *value = (int)number("STAND_IN_CAPABILITY", 80) / 10; return SUCCESS;  // compute capability, major
        case 76: *value = (int)number("STAND_IN_CAPABILITY", 80) % 10; return SUCCESS;  // and minor
        case 115: *value = 1; return SUCCESS;  // memory pools: allocations are in order of the stream
    }
    fprintf(stderr, "the stand-in driver does not know device attribute %d\n", attribute);
    abort();
}

API int cuDevicePrimaryCtxRetain(void **context, int device) {
    FAIL_IF_ASKED;
    *context = (void *)(intptr_t)(device + 1);
    return SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void *context) {
    current = (intptr_t)context;
    return SUCCESS;
}
API int cuCtxGetCurrent(void **context) {
    *context = (void *)current;
    return SUCCESS;
}
API int cuCtxSynchronize() {
    stand_in::trace("synchronize");
    std::set<Stream *> all;
    {
        std::lock_guard<std::mutex> lock(guard);
        all = streams;
    }
    for (Stream *stream : all) bring(stream, SIZE_MAX);
    return SUCCESS;
}

API int cuStreamCreate(void **stream, unsigned) {
    if (current == 0) return INVALID_CONTEXT;
    Stream *made = new Stream{stand_in::current_device(), nullptr, false, {}, 0};
    std::lock_guard<std::mutex> lock(guard);
    streams.insert(made);
    *stream = made;
    return SUCCESS;
}
API int cuStreamDestroy_v2(void *stream) {
    std::lock_guard<std::mutex> lock(guard);
    streams.erase((Stream *)stream);
    delete (Stream *)stream;
    return SUCCESS;
}
API int cuStreamSynchronize(void *stream) {
    FAIL_IF_ASKED;
    if (const int code = refused_while_recording(stream)) return code;
    stand_in::trace("synchronize");
    bring((Stream *)stream, SIZE_MAX);
    return SUCCESS;
}

// Events have happened by the time that anybody asks: what is queued is done at once. Only what is copied to pinned memory of the host
// comes no earlier than somebody waits for it: who looks before sees what was there.
API int cuEventCreate(void **event, unsigned) {
    *event = new Event{};
    return SUCCESS;
}
API int cuEventDestroy_v2(void *event) {
    delete (Event *)event;
    return SUCCESS;
}
API int cuEventRecord(void *event, void *stream) {
    if (const int code = refused_while_recording(stream)) return code;
    std::lock_guard<std::mutex> lock(guard);
    *(Event *)event = {std::chrono::steady_clock::now(), (Stream *)stream, ((Stream *)stream)->queued};
    return SUCCESS;
}
API int cuEventSynchronize(void *opaque) {
    FAIL_IF_ASKED;
    const Event *event = (Event *)opaque;
    // One that was never queued has happened.
    if (event->stream != nullptr) bring(event->stream, event->queued);
    return SUCCESS;
}
API int cuEventElapsedTime_v2(float *milliseconds, void *begin, void *end) {
    *milliseconds = std::chrono::duration<float, std::milli>(((Event *)end)->moment - ((Event *)begin)->moment).count();
    return SUCCESS;
}

API int cuStreamBeginCapture_v2(void *opaque, int) {
    FAIL_IF_ASKED;
    Stream *stream = (Stream *)opaque;
    if (stream->recording != nullptr) return CAPTURE_UNSUPPORTED;
    stream->recording = new Graph;
    stream->spoiled = false;
    return SUCCESS;
}
API int cuStreamEndCapture(void *opaque, void **graph) {
    FAIL_IF_ASKED;
    Stream *stream = (Stream *)opaque;
    *graph = stream->recording;
    stream->recording = nullptr;
    if (!stream->spoiled) return SUCCESS;
    delete (Graph *)*graph;
    *graph = nullptr;
    return CAPTURE_INVALIDATED;
}
API int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    FAIL_IF_ASKED;
    *executable = new Graph(*(Graph *)graph);
    stand_in::trace("instantiate %zu", ((Graph *)graph)->nodes.size());
    return SUCCESS;
}
API int cuGraphLaunch(void *executable, void *stream) {
    FAIL_IF_ASKED;
    if (stand_in::current_device() != ((Stream *)stream)->device) return INVALID_CONTEXT;
    stand_in::trace("replay %zu", ((Graph *)executable)->nodes.size());
    for (const auto &[name, work] : ((Graph *)executable)->nodes)
        if (const int code = run(name, work)) return code;
    return SUCCESS;
}
API int cuStreamGetCaptureInfo_v3(void *opaque, int *status, uint64_t *, void **graph, void *, void *, size_t *) {
    Stream *stream = (Stream *)opaque;
    // CUstreamCaptureStatus: none, active, invalidated.
    *status = stream->recording == nullptr ? 0 : stream->spoiled ? 2 : 1;
    *graph = stream->recording;
    return SUCCESS;
}
API int cuGraphGetNodes(void *graph, void **, size_t *count) {
    *count = ((Graph *)graph)->nodes.size();
    return SUCCESS;
}
API int cuGraphExecDestroy(void *executable) {
    delete (Graph *)executable;
    return SUCCESS;
}
API int cuGraphDestroy(void *graph) {
    delete (Graph *)graph;
    return SUCCESS;
}

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    std::lock_guard<std::mutex> lock(guard);
    *total_bytes = memory_bytes();
    *free_bytes = *total_bytes - allocated_bytes[stand_in::current_device()];
    return SUCCESS;
}
API int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    FAIL_IF_ASKED;
    if (const int code = refused_while_recording(stream)) return code;
    return allocate(stand_in::device_of(stream), address, bytes);
}
API int cuMemFreeAsync(uint64_t address, void *stream) {
    if (const int code = refused_while_recording(stream)) return code;
    return release(address);
}
API int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    FAIL_IF_ASKED;
    *memory = malloc(bytes);
    stand_in::trace("allocate-pinned %zu", bytes);
    std::lock_guard<std::mutex> lock(guard);
    pinned[(uint64_t)*memory] = bytes;
    return *memory == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
API int cuMemFreeHost(void *memory) {
    std::lock_guard<std::mutex> lock(guard);
    pinned.erase((uint64_t)memory);
    free(memory);
    return SUCCESS;
}

API int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    if (!stand_in::inside(stand_in::device_of(stream), (void *)address, bytes)) return ILLEGAL_ADDRESS;
    return stand_in::queue(stream, "set", [=] {
        memset((void *)address, value, bytes);
        return SUCCESS;
    });
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    FAIL_IF_ASKED;
    if (const int code = refused_while_recording(stream)) return code;
    if (!stand_in::inside(stand_in::device_of(stream), (void *)to, bytes)) return ILLEGAL_ADDRESS;
    if (!shapes_only()) memcpy((void *)to, from, bytes);
    stand_in::trace("copy-in %zu", bytes);
    return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    FAIL_IF_ASKED;
    if (const int code = refused_while_recording(stream)) return code;
    if (!stand_in::inside(stand_in::device_of(stream), (void *)from, bytes)) return ILLEGAL_ADDRESS;
    std::vector<char> copied(bytes, 0);
    if (!shapes_only()) memcpy(copied.data(), (const void *)from, bytes);
    stand_in::trace("copy-out %zu", bytes);
    if (!is_pinned(to, bytes)) {
        memcpy(to, copied.data(), bytes);
        return SUCCESS;
    }
    std::lock_guard<std::mutex> lock(guard);
    Stream *const on = (Stream *)stream;
    on->arriving.push_back({to, std::move(copied)});
    on->queued++;
    return SUCCESS;
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    const int device = stand_in::device_of(stream);
    if (!stand_in::inside(device, (void *)to, bytes) || !stand_in::inside(device, (void *)from, bytes)) return ILLEGAL_ADDRESS;
    return stand_in::queue(stream, "copy " + std::to_string(bytes), [=] {
        memmove((void *)to, (const void *)from, bytes);
        return SUCCESS;
    });
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

// What an H100 says of kernels with few registers, held to the limit.
API int cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, void *, void *, size_t, int limit, unsigned) {
    FAIL_IF_ASKED;
    *grid = 8;
    *block = limit > 0 && limit < 1024 ? limit : 1024;
    return SUCCESS;
}

API int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned, void *stream, void **arguments, void **) {
    const char *name = (const char *)function;
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x == 0 || block_x > 1024 || block_y != 1 || block_z != 1)
        return INVALID_VALUE;
    const std::function<void()> launch = stand_in::kernel(name, grid_x, block_x, arguments);
    if (!launch) {
        fprintf(stderr, "the stand-in driver has no kernel %s\n", name);
        abort();
    }
    return stand_in::queue(stream, name, [launch] {
        launch();
        return SUCCESS;
    });
}

API int cuGetErrorName(int code, const char **text) {
    switch (code) {
        case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; break;
        case INVALID_CONTEXT: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case CAPTURE_UNSUPPORTED: *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
        case CAPTURE_INVALIDATED: *text = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
        default: *text = "an error of the stand-in driver";
    }
    return SUCCESS;
}
API int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }
