/* A device in host memory, for torch_npu: those functions of CANN that have to do something. Its declarations are the
   wheel's own headers, so the compiler checks every one of these against them. Work is done when its call returns. */

#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "acl/acl_base.h"
#include "acl/acl_op_compiler.h"
#include "acl/acl_rt.h"

#define PAGE 512
#define STREAM_SIZE 64

static size_t taken;
static int32_t current;
static char context[8];

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

/* The chip. */

const char *aclrtGetSocName() {
    const char *name = getenv("REHEARSED_SOC");
    return name ? name : "Ascend910B3";
}
aclError aclrtGetDeviceCount(uint32_t *count) { return *count = number("REHEARSED_COUNT", 1), 0; }
aclError aclrtGetDevice(int32_t *device) { return *device = current, 0; }
aclError aclrtSetDevice(int32_t device) { return current = device, 0; }
aclError aclrtGetLogicDevIdByUserDevId(const int32_t device, int32_t *const logical) { return *logical = device, 0; }
aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    return *flags = 0, *active = device == current, 0;
}
aclError aclrtGetCurrentContext(aclrtContext *found) { return *found = context, 0; }
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { return *can = 0, 0; }
aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t *value) { return *value = 0, 0; }
aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value) { return *value = 0, 0; }
aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) { return *value = 1, 0; }
aclError aclsysGetCANNVersion(aclCANNPackageName package, aclCANNPackageVersion *found) {
    memset(found, 0, sizeof *found);
    return strcpy(found->version, "8.5.0"), 0;
}
aclError aclsysGetVersionStr(char *package, char *version) { return strcpy(version, "8.5.0"), 0; }
const char *aclGetRecentErrMsg() { return ""; }
size_t aclGetCompileoptSize(aclCompileOpt option) { return 2; }
aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t length) { return strncpy(value, "0", length), 0; }

/* Memory. */

static aclError allocate(void **found, size_t size) {
    size_t total = number("REHEARSED_GIB", 64) << 30;
    if (taken + size > total || posix_memalign(found, PAGE, size + PAGE)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    taken += malloc_usable_size(*found);
    return 0;
}
aclError aclrtMalloc(void **found, size_t size, aclrtMemMallocPolicy policy) { return allocate(found, size); }
aclError aclrtMallocAlign32(void **found, size_t size, aclrtMemMallocPolicy policy) { return allocate(found, size); }
aclError aclrtFree(void *memory) { return taken -= malloc_usable_size(memory), free(memory), 0; }
aclError aclrtMallocHost(void **found, size_t size) { return posix_memalign(found, PAGE, size) ? 1 : 0; }
aclError aclrtMallocHostWithCfg(void **found, uint64_t size, aclrtMallocConfig *how) {
    return aclrtMallocHost(found, size);
}
aclError aclrtFreeHost(void *memory) { return free(memory), 0; }
aclError aclrtGetMemInfo(aclrtMemAttr kind, size_t *left, size_t *total) {
    *total = number("REHEARSED_GIB", 64) << 30;
    return *left = *total - taken, 0;
}
aclError aclrtMemcpy(void *target, size_t most, const void *source, size_t size, aclrtMemcpyKind kind) {
    if (size > most) return ACL_ERROR_INVALID_PARAM;
    return memcpy(target, source, size), 0;
}
aclError aclrtMemcpyAsync(void *target, size_t most, const void *source, size_t size, aclrtMemcpyKind kind,
                          aclrtStream stream) {
    return aclrtMemcpy(target, most, source, size, kind);
}
aclError aclrtMemset(void *memory, size_t most, int32_t value, size_t size) {
    if (size > most) return ACL_ERROR_INVALID_PARAM;
    return memset(memory, value, size), 0;
}
aclError aclrtMemsetAsync(void *memory, size_t most, int32_t value, size_t size, aclrtStream stream) {
    return aclrtMemset(memory, most, value, size);
}
aclError aclrtPointerGetAttributes(const void *memory, aclrtPtrAttributes *found) {
    memset(found, 0, sizeof *found);
    return found->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED, 0;
}

/* Graphs. A stream is recorded from begin to end, and whoever waits for it in between, or for the device, gets CANN's
   error. What was recorded nobody executes here: `graphs.py` repeats it. */

static aclrtStream captured;
static uintptr_t recordings; /* no two have the same number */

static aclError waits(aclrtStream stream) {
    return captured && stream == captured ? ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT : 0;
}
aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode mode) {
    if (captured || mode != ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL) return ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT;
    return captured = stream, ++recordings, 0;
}
aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *found) {
    int active = captured && stream == captured;
    *status = active ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    return *found = active ? (aclmdlRI)recordings : NULL, 0;
}
aclError aclmdlRIGetId(aclmdlRI recorded, uint32_t *id) { return *id = (uintptr_t)recorded, 0; }
aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI *found) {
    if (!captured || stream != captured) return ACL_ERROR_RT_STREAM_NOT_CAPTURED;
    return captured = NULL, *found = (aclmdlRI)recordings, 0;
}

/* Streams and events: an event is the time at which it was recorded. */

static aclError event_of(aclrtEvent *found) { return *found = calloc(1, sizeof(struct timespec)), 0; }
aclError aclrtCreateStream(aclrtStream *found) { return *found = calloc(1, STREAM_SIZE), 0; }
aclError aclrtCreateStreamWithConfig(aclrtStream *found, uint32_t priority, uint32_t flag) {
    return aclrtCreateStream(found);
}
aclError aclrtDestroyStream(aclrtStream stream) { return free(stream), 0; }
aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
    return *status = ACL_STREAM_STATUS_COMPLETE, waits(stream);
}
aclError aclrtSynchronizeStream(aclrtStream stream) { return waits(stream); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) { return waits(stream); }
aclError aclrtSynchronizeDevice(void) { return waits(captured); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) { return waits(captured); }
aclError aclrtCreateEvent(aclrtEvent *found) { return event_of(found); }
aclError aclrtCreateEventWithFlag(aclrtEvent *found, uint32_t flag) { return event_of(found); }
aclError aclrtCreateEventExWithFlag(aclrtEvent *found, uint32_t flag) { return event_of(found); }
aclError aclrtDestroyEvent(aclrtEvent event) { return free(event), 0; }
aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) { return clock_gettime(CLOCK_MONOTONIC, event); }
aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
    return *status = ACL_EVENT_RECORDED_STATUS_COMPLETE, 0;
}
aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status) {
    return *status = ACL_EVENT_WAIT_STATUS_COMPLETE, 0;
}
aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) {
    struct timespec *a = start, *b = end;
    return *milliseconds = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f, 0;
}

/* What nobody wrote. What a device would compute or move fails, or it would be left out in silence; the rest, which
   sets something up, succeeds. */

int nothing(const char *name, char *said) {
    int sets = strstr(name, "Set") || strstr(name, "Get");
    int acts = !strncmp(name, "Hccl", 4) || strstr(name, "Execute") || strstr(name, "Launch") || strstr(name, "Memcpy");
    if (acts && !sets) return fprintf(stderr, "rehearsal: %s is not rehearsed\n", name), 1;
    if (!*said && getenv("REHEARSED_TRACE")) fprintf(stderr, "rehearsal: %s does nothing\n", name);
    return *said = 1, 0;
}
