// NCCL (libnccl.so.2), between the devices of one process. A rank waits in the calling thread, or when what was recorded is
// launched, until the others have come or somebody aborts.

#include "driver.h"

#include "cuda_on_host.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"

#include <stdio.h>
#include <string.h>

#include <condition_variable>
#include <memory>
#include <mutex>

namespace {

constexpr int SUCCESS = 0, CUDA_ERROR = 1, REMOTE_ERROR = 6;

// ncclDataType_t.
constexpr int F16 = 6, F32 = 7, BF16 = 9;

// All ranks of a model.
struct Clique {
    std::mutex guard;
    std::condition_variable changed;
    bool aborted = false;
    // What each rank brought to a sum, and the sum.
    std::vector<const void *> brought;
    size_t count = 0;
    std::vector<float> sum;
    int arrived = 0;
    uint64_t meetings = 0;
    // By sender, for rank 0: null where nothing waits.
    std::vector<const void *> sent;
};

struct Communicator {
    std::shared_ptr<Clique> clique;
    int rank;
    int device;
};

size_t size_of(int type) { return type == F32 ? 4 : 2; }

float load(const void *from, int type, size_t index) {
    switch (type) {
        case F32: return ((const float *)from)[index];
        case F16: return __half2float(((const __half *)from)[index]);
        case BF16: return __bfloat162float(((const __nv_bfloat16 *)from)[index]);
    }
    fprintf(stderr, "the stand-in NCCL does not know data type %d\n", type);
    abort();
}

void store(void *to, int type, size_t index, float x) {
    switch (type) {
        case F32: ((float *)to)[index] = x; return;
        case F16: ((__half *)to)[index] = __float2half_rn(x); return;
        case BF16: ((__nv_bfloat16 *)to)[index] = __float2bfloat16_rn(x); return;
    }
}

// Returns once all have come; whoever comes last does `last` for all.
template <typename Last>
int meet(Clique &clique, std::unique_lock<std::mutex> &lock, Last last) {
    if (clique.aborted) return REMOTE_ERROR;
    if (++clique.arrived == (int)clique.brought.size()) {
        clique.arrived = 0;
        clique.meetings++;
        last();
        clique.changed.notify_all();
        return SUCCESS;
    }
    const uint64_t meeting = clique.meetings;
    clique.changed.wait(lock, [&] { return clique.meetings != meeting || clique.aborted; });
    return clique.meetings != meeting ? SUCCESS : REMOTE_ERROR;
}

}  // namespace

API int ncclCommInitAll(void **communicators, int count, const int *devices) {
    FAIL_IF_ASKED;
    auto clique = std::make_shared<Clique>();
    clique->brought.resize(count);
    clique->sent.resize(count);
    for (int rank = 0; rank < count; rank++) {
        communicators[rank] = new Communicator{clique, rank, devices[rank]};
    }
    return SUCCESS;
}

API int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, void *opaque, void *stream) {
    FAIL_IF_ASKED;
    const auto [clique, rank, device] = *(Communicator *)opaque;
    if (stand_in::device_of(stream) != device || operation != 0) return CUDA_ERROR;
    stand_in::demand(stream, from, count * size_of(type), "a sum over ranks");
    stand_in::demand(stream, to, count * size_of(type), "a sum over ranks");
    return stand_in::queue(stream, "all-reduce", [=, clique = clique, rank = rank] {
        std::unique_lock<std::mutex> lock(clique->guard);
        clique->brought[rank] = from;
        if (clique->arrived == 0) clique->count = count;
        if (clique->count != count) {
            fprintf(stderr, "rank %d sums %zu numbers, another one %zu\n", rank, count, clique->count);
            abort();
        }
        const int met = meet(*clique, lock, [&] {
            clique->sum.assign(count, 0);
            for (const void *brought : clique->brought)
                for (size_t i = 0; i < count; i++) clique->sum[i] += load(brought, type, i);
            if (stand_in::is_wrong("all-reduce")) clique->sum[count / 2] += 1;
        });
        if (met != SUCCESS) return met;
        for (size_t i = 0; i < count; i++) store(to, type, i, clique->sum[i]);
        // Nobody begins another sum before all have this one.
        return meet(*clique, lock, [] {});
    });
}

API int ncclGroupStart() { return SUCCESS; }
API int ncclGroupEnd() { return SUCCESS; }

API int ncclSend(const void *from, size_t count, int type, int peer, void *opaque, void *stream) {
    FAIL_IF_ASKED;
    const auto [clique, rank, device] = *(Communicator *)opaque;
    if (stand_in::device_of(stream) != device || peer != 0) return CUDA_ERROR;
    stand_in::demand(stream, from, count * size_of(type), "a send");
    return stand_in::queue(stream, "send", [=, clique = clique, rank = rank] {
        std::unique_lock<std::mutex> lock(clique->guard);
        clique->sent[rank] = from;
        clique->changed.notify_all();
        clique->changed.wait(lock, [&] { return clique->sent[rank] == nullptr || clique->aborted; });
        return clique->sent[rank] == nullptr ? SUCCESS : REMOTE_ERROR;
    });
}

API int ncclRecv(void *to, size_t count, int type, int peer, void *opaque, void *stream) {
    FAIL_IF_ASKED;
    const auto [clique, rank, device] = *(Communicator *)opaque;
    if (stand_in::device_of(stream) != device || rank != 0) return CUDA_ERROR;
    stand_in::demand(stream, to, count * size_of(type), "a receive");
    return stand_in::queue(stream, "receive", [=, clique = clique] {
        std::unique_lock<std::mutex> lock(clique->guard);
        clique->changed.wait(lock, [&] { return clique->sent[peer] != nullptr || clique->aborted; });
        if (clique->sent[peer] == nullptr) return REMOTE_ERROR;
        memcpy(to, clique->sent[peer], count * size_of(type));
        clique->sent[peer] = nullptr;
        clique->changed.notify_all();
        return SUCCESS;
    });
}

API int ncclCommAbort(void *opaque) {
    const auto clique = ((Communicator *)opaque)->clique;
    std::lock_guard<std::mutex> lock(clique->guard);
    clique->aborted = true;
    clique->changed.notify_all();
    return SUCCESS;
}

API int ncclCommDestroy(void *opaque) {
    delete (Communicator *)opaque;
    return SUCCESS;
}
