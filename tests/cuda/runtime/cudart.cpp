// See cuda_runtime.h.

#include "cuda_runtime.h"

static thread_local cudaError_t last = cudaSuccess;

void stand_in_launch_failed(int code) { last = (cudaError_t)code; }

cudaError_t cudaGetLastError(void) {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t code) {
    switch ((int)code) {
        case 98: return "invalid device function";
        case 209: return "no kernel image is available for execution on the device";
    }
    return "an error of the stand-in runtime";
}
