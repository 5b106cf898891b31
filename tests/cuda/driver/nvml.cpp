// NVML (libnvidia-ml.so.1): GPUs that draw 100 W, and take a joule each time that they are asked.

#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

namespace {

constexpr int SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10;
std::atomic<unsigned long long> millijoules{5000};

unsigned long long count(const char *variable) {
    const char *text = getenv(variable);
    return text == nullptr ? 0 : strtoull(text, nullptr, 10);
}

int write(unsigned *to, unsigned value) {
    *to = value;
    return SUCCESS;
}

}  // namespace

API int nvmlInit_v2() {
    FAIL_IF_ASKED;
    return SUCCESS;
}
API int nvmlShutdown() { return SUCCESS; }
API const char *nvmlErrorString(int) { return "an error of the stand-in NVML"; }

API int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    // cuDeviceGetUuid's, written as NVML writes them.
    const char *const zeros = "GPU-00000000-0000-0000-0000-0000000000";
    const size_t length = strlen(zeros);
    if (strncmp(uuid, zeros, length) != 0) return NOT_FOUND;
    const int device_number = (int)strtol(uuid + length, nullptr, 16);
    if (device_number < 1 || device_number > stand_in::devices()) return NOT_FOUND;
    *device = (void *)(intptr_t)device_number;
    return SUCCESS;
}
API int nvmlDeviceGetName(void *, char *name, unsigned length) {
    snprintf(name, length, "Stand-in");
    return SUCCESS;
}
API int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012x", (unsigned)(intptr_t)device);
    return SUCCESS;
}

// Events: that of STAND_IN_XID on the first device, once.
API int nvmlEventSetCreate(void **set) {
    *set = (void *)0x5e7;
    return SUCCESS;
}
API int nvmlDeviceRegisterEvents(void *, unsigned long long, void *) { return SUCCESS; }
API int nvmlEventSetFree(void *) { return SUCCESS; }
API int nvmlEventSetWait_v2(void *, void *opaque, unsigned) {
    struct Event {
        void *device;
        unsigned long long type, data;
        unsigned instance, compute_instance;
    } *event = (Event *)opaque;
    static std::atomic<bool> told{false};
    const unsigned long long xid = count("STAND_IN_XID");
    if (xid == 0 || told.exchange(true)) return TIMEOUT;
    // nvmlEventTypeXidCriticalError.
    *event = {(void *)1, 8, xid, 0xffffffff, 0xffffffff};
    return SUCCESS;
}
API int nvmlDeviceGetTotalEccErrors(void *, int, int, unsigned long long *errors) {
    *errors = count("STAND_IN_ECC");
    return SUCCESS;
}
API int nvmlDeviceGetFieldValues(void *, int values, void *opaque) {
    struct Value {
        unsigned field, scope;
        long long timestamp, latency;
        unsigned type, code;
        unsigned long long number;
    } *value = (Value *)opaque;
    for (int i = 0; i < values; i++) {
        // NVML_FI_DEV_REMAPPED_PENDING and _FAILURE; unsigned int is type 1.
        value[i].type = 1;
        value[i].code = value[i].field == 144 || value[i].field == 145 ? SUCCESS : NOT_SUPPORTED;
        value[i].number = value[i].field == 144 ? count("STAND_IN_REMAPPING") : 0;
    }
    return SUCCESS;
}
API int nvmlDeviceGetUtilizationRates(void *, unsigned *gpu_and_memory) {
    write(gpu_and_memory + 1, 40);
    return write(gpu_and_memory, 75);
}
API int nvmlDeviceGetMemoryInfo_v2(void *, void *opaque) {
    struct Memory {
        unsigned version;
        unsigned long long total, reserved, free, used;
    } *memory = (Memory *)opaque;
    *memory = {memory->version, 1000000000, 100000000, 600000000, 300000000};
    return SUCCESS;
}
API int nvmlDeviceGetPowerUsage(void *, unsigned *milliwatts) { return write(milliwatts, 100000); }
API int nvmlDeviceGetEnforcedPowerLimit(void *, unsigned *milliwatts) { return write(milliwatts, 400000); }
API int nvmlDeviceGetTemperature(void *, int, unsigned *celsius) { return write(celsius, 55); }
API int nvmlDeviceGetClockInfo(void *, int clock, unsigned *megahertz) { return write(megahertz, clock == 2 ? 1600 : 1400); }
API int nvmlDeviceGetCurrentClocksThrottleReasons(void *, unsigned long long *reasons) {
    // A power cap, and a slowdown for heat.
    *reasons = 0x4 | 0x20;
    return SUCCESS;
}
API int nvmlDeviceGetTotalEnergyConsumption(void *, unsigned long long *energy) {
    FAIL_IF_ASKED;
    *energy = millijoules += 1000;
    return SUCCESS;
}
