/* NVIDIA's management library as far as the profiler asks it, with the answers of the text file $FAKE_NVML: a line
 * 'key value' each, as in '0.energy 1000'. What has no line is not supported. Signatures: NVML API Reference Manual. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } process_t;

static int told(const char *wanted, u64 *value) {
    char key[64], text[64];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int found = 0;
    while (file && !found && fscanf(file, "%63s %63s", key, text) == 2)
        found = !strcmp(key, wanted);
    if (file) fclose(file);
    if (found) *value = !strcmp(text, "self") ? (u64)getpid() : strtoull(text, NULL, 10);
    return found;
}

static int of(void *device, const char *name, u64 *value) {
    char key[64];
    snprintf(key, sizeof key, "%d.%s", (int)((size_t)device - 1), name);
    return told(key, value);
}

int nvmlInit_v2(void) { u64 code = SUCCESS; told("init", &code); return (int)code; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Unknown Error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    u64 value = 0;
    told("count", &value);
    *count = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)((size_t)index + 1);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, u64 *millijoules) {
    return of(device, "energy", millijoules) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    u64 value;
    if (!of(device, "power", &value)) return NOT_SUPPORTED;
    *milliwatts = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    if (!of(device, "used", &memory->used)) return NOT_SUPPORTED;
    memory->total = 1ULL << 40;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

static int processes(void *device, const char *kind, unsigned *count, process_t *infos) {
    char name[64];
    u64 value = 0;
    unsigned room = *count, i;
    snprintf(name, sizeof name, "%s", kind);
    if (!of(device, name, &value)) return NOT_SUPPORTED;
    *count = (unsigned)value;
    if (value > room) return INSUFFICIENT_SIZE;
    for (i = 0; i < *count; i++) {
        memset(&infos[i], 0xff, sizeof infos[i]);
        infos[i].pid = 1000 + i;
        snprintf(name, sizeof name, "%s.%u.pid", kind, i);
        if (of(device, name, &value)) infos[i].pid = (unsigned)value;
        snprintf(name, sizeof name, "%s.%u.memory", kind, i);
        if (of(device, name, &value)) infos[i].memory = value; /* else all bits: not available */
    }
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *infos) {
    return processes(device, "compute", count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(void *device, unsigned *count, process_t *infos) {
    return processes(device, "graphics", count, infos);
}
