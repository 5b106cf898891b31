// A stand-in for NVIDIA's libraries: device memory is host memory, and everything is done at once, in the calling thread, unless its
// stream is being recorded: then each time the recording is launched.
//
// Only what flashjob calls is here. Whatever else cudarc knows ends the program with its name (unknown.c, generated), and so
// does a kernel that nobody has written down. Behaviour is set by the environment:
//   STAND_IN_TRACE=FILE          a line for each launch, copy, allocation and synchronisation goes there
//   STAND_IN_MEMORY=BYTES        of each device (default 1 GiB)
//   STAND_IN_DEVICES=COUNT       (default 1; 0 is a driver without devices)
//   STAND_IN_NAMES=A,B,…         of the devices (default: each is a "Stand-in")
//   STAND_IN_CUDA=VERSION        that the driver knows (default 13000)
//   STAND_IN_CAPABILITY=NUMBER   ten times the compute capability of each (default 80)
//   STAND_IN_FAIL=CALL:N[:CODE]  the N-th call of CALL, or launch of kernel CALL, returns CODE (default 700); every call where N is 0
//   STAND_IN_FAIL=CALL:N:hang    the N-th call never returns
//   STAND_IN_WRONG=NAME          what NAME computes is wrong: attention, all-reduce
//   STAND_IN_LOSE=NAME           launches of NAME that are recorded are forgotten
//   STAND_IN_SHAPES=BYTES        from the allocation on with which a device has given out more, nothing is computed or copied, and memory
//                                is not there: only calls are looked at. Checks at the start need less than 50 MiB, and are computed
//   STAND_IN_XID=NUMBER          NVML reports this error of the first device, once
//   STAND_IN_ECC=COUNT           uncorrected errors of each device
//   STAND_IN_REMAPPING=1         rows of each device are to be remapped
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

namespace stand_in {

// Writes a line of the trace.
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What STAND_IN_FAIL has for this call, 0 otherwise.
int failure(const char *call);

// Whether STAND_IN_WRONG has this name.
bool is_wrong(const char *name);

int devices();

// The device that the calling thread has chosen; -1 before it has.
int current_device();

// That of a stream.
int device_of(void *stream);

// Whether all bytes are inside one allocation of a device.
bool inside(int device, const void *address, size_t bytes);

// The same, or the program ends.
void demand(void *stream, const void *address, size_t bytes, const char *what);

// Does `work` in a stream's order: now, or whenever what is being recorded is launched. `name` is for the trace and for
// STAND_IN_FAIL. Returns what went wrong, 0 if nothing did.
int queue(void *stream, const std::string &name, std::function<int()> work);

// A launch of our kernel with this name, its arguments taken; empty where there is none.
std::function<void()> kernel(const char *name, uint32_t blocks, uint32_t threads, void **arguments);

// Whether there is a kernel with this name.
bool knows_kernel(const char *name);

}  // namespace stand_in

// Returns from a call that is to fail.
#define FAIL_IF_ASKED                                             \
    if (const int code = stand_in::failure(__func__)) return code
