// A stand-in for NVIDIA's libraries: device memory is host memory, and everything is done at once, in the calling thread.
//
// Only what flashjob calls is here. Whatever else cudarc knows ends the program with its name (unknown.c, generated), and so
// does a kernel that nobody has written down. Behaviour is set by the environment:
//   STAND_IN_TRACE=FILE          a line for each launch, copy, allocation and synchronisation goes there
//   STAND_IN_MEMORY=BYTES        of each device (default 1 GiB)
//   STAND_IN_DEVICES=COUNT       (default 1; 0 is a driver without devices)
//   STAND_IN_FAIL=CALL:N[:CODE]  the N-th call of CALL, or launch of kernel CALL, returns CODE (default 700)
#pragma once

#include <stdint.h>

#define API extern "C" __attribute__((visibility("default")))

namespace stand_in {

// Writes a line of the trace.
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What STAND_IN_FAIL has for this call, 0 otherwise.
int failure(const char *call);

// Runs the kernel with this name; false where there is none.
bool run_kernel(const char *name, uint32_t blocks, uint32_t threads, void **arguments);

// Whether there is a kernel with this name.
bool knows_kernel(const char *name);

}  // namespace stand_in

// Returns from a call that is to fail.
#define FAIL_IF_ASKED                                             \
    if (const int code = stand_in::failure(__func__)) return code
