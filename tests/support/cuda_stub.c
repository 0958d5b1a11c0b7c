/* A stand-in for NVIDIA's driver library (libcuda.so.1) on machines without a GPU.

   It has the functions that neurona_server.models.onnx.cuda_driver calls, with the types, results
   and demands of the CUDA driver API: cuInit first, a current context where CUDA wants one. Device
   memory is host memory; each allocation is a shared memory object, so that a process can open
   that of another by its handle (and, unlike in CUDA, its own). What it is like is read from the
   environment at every call:

   CUDA_STUB_DEVICES     number of devices (default 1)
   CUDA_STUB_VERSION     as cuDriverGetVersion returns it (default 13000)
   CUDA_STUB_CAPABILITY  compute capability of all devices (default "9.0")
   CUDA_STUB_MEMORY      bytes of each device (default 16 GiB)
   CUDA_STUB_MIG         set: the devices are slices of GPUs
   CUDA_STUB_ERRORS      functions that fail, as "cuInit=100,cuMemcpyDtoH=700", without _v2; one
                         with the value "hang" does not return
   CUDA_STUB_FILE        a file with more of them, for a process that runs already; a function that
                         hangs because of it returns once the file does not list it
   CUDA_VISIBLE_DEVICES  as in CUDA: numbers or uuids of devices; "" hides all

   A device has the uuid 00000000-0000-0000-0000-00000000000N. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400
};
enum { MAX_DEVICES = 64, MAX_ALLOCATIONS = 4096, MAX_DEPTH = 64, NAME_BYTES = 64 };

typedef struct { unsigned char reserved[NAME_BYTES]; } IpcHandle;
typedef struct {
    int used, owned, on_host, device, opened;
    char *start;
    size_t size;
    char name[NAME_BYTES];
} Allocation;

static const struct { int code; const char *name, *text; } ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation allocations[MAX_ALLOCATIONS];
static int initialized, serial;
static __thread void *stack[MAX_DEPTH];
static __thread int depth;

static long number(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text && *text ? atol(text) : otherwise;
}

/* The error that a list such as "cuInit=100" has for a function; -1: it hangs. */
static int listed(const char *list, const char *function) {
    size_t length = strlen(function);
    for (const char *at = list; at && (at = strstr(at, function)); at += length)
        if ((at == list || at[-1] == ',' || at[-1] == '\n') && at[length] == '=')
            return strncmp(at + length + 1, "hang", 4) ? atoi(at + length + 1) : -1;
    return 0;
}

static int listed_in_file(const char *path, const char *function) {
    char content[4096] = "";
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    content[fread(content, 1, sizeof content - 1, file)] = 0;
    fclose(file);
    return listed(content, function);
}

static int failure(const char *function) {
    int code = listed(getenv("CUDA_STUB_ERRORS"), function);
    const char *path = getenv("CUDA_STUB_FILE");
    char copy[4096]; /* the environment may change while this hangs */
    while (code == -1)
        pause();
    if (code || !path)
        return code;
    snprintf(copy, sizeof copy, "%s", path);
    while ((code = listed_in_file(copy, function)) == -1)
        usleep(10000);
    return code;
}

#define CHECK(function) do { \
    int code_ = failure(function); \
    if (code_) return code_; \
    if (!initialized) return NOT_INITIALIZED; } while (0)
#define CHECK_CONTEXT(function) do { \
    CHECK(function); \
    if (!depth) return INVALID_CONTEXT; } while (0)

static void uuid_of(int device, unsigned char *uuid) {
    memset(uuid, 0, 16);
    uuid[15] = (unsigned char)device;
}

/* Fills `chosen` with the devices that CUDA_VISIBLE_DEVICES leaves; returns their number. */
static int visible(int *chosen) {
    int all = (int)number("CUDA_STUB_DEVICES", 1), count = 0;
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    if (!text) {
        for (; count < all; count++)
            chosen[count] = count;
        return all;
    }
    char copy[4096], *rest = copy, *part;
    snprintf(copy, sizeof copy, "%s", text);
    while ((part = strsep(&rest, ","))) {
        char *end;
        const char *dash = strrchr(part, '-');
        long device = strtol(part, &end, 10);
        if (end == part && dash) /* a uuid: its last part is the number */
            device = strtol(dash + 1, &end, 16);
        if (end == part || device < 0 || device >= all || count == MAX_DEVICES)
            break; /* as in CUDA, the first that does not exist hides those after it */
        chosen[count++] = (int)device;
    }
    return count;
}

static int current(void) { return (int)(intptr_t)stack[depth - 1] - 1; }

static size_t used(int device) {
    size_t sum = 0;
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        if (allocations[i].used && allocations[i].owned && !allocations[i].on_host &&
            allocations[i].device == device)
            sum += allocations[i].size;
    return sum;
}

static Allocation *find(uint64_t address) {
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        if (allocations[i].used && !allocations[i].on_host &&
            (uint64_t)(uintptr_t)allocations[i].start <= address &&
            address < (uint64_t)(uintptr_t)allocations[i].start + allocations[i].size)
            return &allocations[i];
    return NULL;
}

static int inside(uint64_t address, size_t size) {
    pthread_mutex_lock(&lock);
    Allocation *one = find(address);
    int result = one && address + size <= (uint64_t)(uintptr_t)one->start + one->size;
    pthread_mutex_unlock(&lock);
    return result;
}

static Allocation *place(void) {
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        if (!allocations[i].used) {
            memset(&allocations[i], 0, sizeof allocations[i]);
            return &allocations[i];
        }
    return NULL;
}

static int open_object(Allocation *one, size_t size) {
    struct stat status;
    int file = shm_open(one->name, size ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
    if (file < 0)
        return INVALID_HANDLE;
    if ((size && ftruncate(file, (off_t)size)) || fstat(file, &status)) {
        close(file);
        return OUT_OF_MEMORY;
    }
    one->size = (size_t)status.st_size;
    one->start = mmap(NULL, one->size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return one->start == MAP_FAILED ? OUT_OF_MEMORY : SUCCESS;
}

static void release(Allocation *one) {
    if (one->on_host) {
        free(one->start);
    } else {
        munmap(one->start, one->size);
        if (one->owned)
            shm_unlink(one->name);
    }
    one->used = 0;
}

__attribute__((destructor)) static void leave(void) {
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        if (allocations[i].used && !allocations[i].on_host && allocations[i].owned)
            shm_unlink(allocations[i].name); /* others may have it open; memory stays mapped */
}

static int error_text(int code, const char **result, int name) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) {
            *result = name ? ERRORS[i].name : ERRORS[i].text;
            return SUCCESS;
        }
    *result = NULL;
    return INVALID_VALUE;
}

int cuGetErrorName(int code, const char **result) { return error_text(code, result, 1); }

int cuGetErrorString(int code, const char **result) { return error_text(code, result, 0); }

int cuDriverGetVersion(int *version) {
    *version = (int)number("CUDA_STUB_VERSION", 13000);
    return failure("cuDriverGetVersion");
}

int cuInit(unsigned flags) {
    int chosen[MAX_DEVICES], code = failure("cuInit");
    if (code || flags)
        return code ? code : INVALID_VALUE;
    if (!visible(chosen))
        return NO_DEVICE;
    initialized = 1;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    int chosen[MAX_DEVICES];
    CHECK("cuDeviceGetCount");
    *count = visible(chosen);
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    int chosen[MAX_DEVICES];
    CHECK("cuDeviceGet");
    if (ordinal < 0 || ordinal >= visible(chosen))
        return INVALID_DEVICE;
    *device = chosen[ordinal];
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    CHECK("cuDeviceGetName");
    snprintf(name, (size_t)length, "Stub GPU%s", getenv("CUDA_STUB_MIG") ? " MIG 1g.2gb" : "");
    return device < 0 ? INVALID_DEVICE : SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    CHECK("cuDeviceGetUuid");
    uuid_of(device, uuid);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    CHECK("cuDeviceTotalMem");
    *bytes = (size_t)number("CUDA_STUB_MEMORY", 16L << 30);
    return device < 0 ? INVALID_DEVICE : SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *text = getenv("CUDA_STUB_CAPABILITY");
    int major = 9, minor = 0;
    CHECK("cuDeviceGetAttribute");
    if (text)
        sscanf(text, "%d.%d", &major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : 0;
    return device < 0 ? INVALID_DEVICE : SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    CHECK("cuDevicePrimaryCtxRetain");
    *context = (void *)(intptr_t)(device + 1);
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context) {
    CHECK("cuCtxPushCurrent");
    if (!context || depth == MAX_DEPTH)
        return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth)
        return INVALID_CONTEXT;
    *context = stack[--depth];
    return failure("cuCtxPopCurrent");
}

int cuCtxSynchronize(void) {
    CHECK_CONTEXT("cuCtxSynchronize");
    return SUCCESS;
}

/* Streams copy at once; their number is all that is kept. */
static int streams;

int cuda_stub_streams(void) { return streams; }

int cuStreamCreate(void **stream, unsigned flags) {
    CHECK_CONTEXT("cuStreamCreate");
    if (flags > 1)
        return INVALID_VALUE;
    *stream = malloc(1);
    __atomic_add_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    CHECK_CONTEXT("cuStreamDestroy");
    free(stream);
    __atomic_sub_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    (void)stream;
    CHECK_CONTEXT("cuStreamSynchronize");
    return SUCCESS;
}

int cuThreadExchangeStreamCaptureMode(int *mode) {
    static __thread int capture_mode; /* CU_STREAM_CAPTURE_MODE_GLOBAL */
    if (*mode < 0 || *mode > 2)
        return INVALID_VALUE;
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *available, size_t *total) {
    CHECK_CONTEXT("cuMemGetInfo");
    pthread_mutex_lock(&lock);
    *total = (size_t)number("CUDA_STUB_MEMORY", 16L << 30);
    *available = *total - used(current());
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    CHECK_CONTEXT("cuMemAlloc");
    if (!size)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int code = OUT_OF_MEMORY;
    Allocation *one = place();
    if (one && used(current()) + size <= (size_t)number("CUDA_STUB_MEMORY", 16L << 30)) {
        snprintf(one->name, sizeof one->name, "/neurona-cuda-stub-%d-%d", getpid(), serial++);
        code = open_object(one, size);
        if (!code) {
            one->used = one->owned = 1;
            one->device = current();
            *address = (uint64_t)(uintptr_t)one->start;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static int free_memory(uint64_t address, int owned) {
    pthread_mutex_lock(&lock);
    Allocation *one = find(address);
    int valid = one && one->owned == owned && (uint64_t)(uintptr_t)one->start == address;
    if (valid && --one->opened <= 0)
        release(one);
    pthread_mutex_unlock(&lock);
    return valid ? SUCCESS : INVALID_VALUE;
}

int cuMemFree_v2(uint64_t address) {
    CHECK_CONTEXT("cuMemFree");
    return free_memory(address, 1);
}

int cuIpcCloseMemHandle(uint64_t address) {
    CHECK_CONTEXT("cuIpcCloseMemHandle");
    return free_memory(address, 0);
}

int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    CHECK_CONTEXT("cuMemHostAlloc");
    if (!size || flags > 7)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    Allocation *one = place();
    *address = one ? aligned_alloc(4096, (size + 4095) / 4096 * 4096) : NULL;
    if (*address) {
        one->used = one->owned = one->on_host = 1;
        one->start = *address;
        one->size = size;
    }
    pthread_mutex_unlock(&lock);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *address) {
    CHECK_CONTEXT("cuMemFreeHost");
    int code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        if (allocations[i].used && allocations[i].on_host && allocations[i].start == address) {
            release(&allocations[i]);
            code = SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

/* For tests: how many ranges of page-locked memory there are. */
int cuda_stub_host_allocations(void) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_ALLOCATIONS; i++)
        count += allocations[i].used && allocations[i].on_host;
    pthread_mutex_unlock(&lock);
    return count;
}

int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t address) {
    CHECK_CONTEXT("cuMemGetAddressRange");
    pthread_mutex_lock(&lock);
    Allocation *one = find(address);
    if (one) {
        *base = (uint64_t)(uintptr_t)one->start;
        *size = one->size;
    }
    pthread_mutex_unlock(&lock);
    return one ? SUCCESS : INVALID_VALUE;
}

int cuIpcGetMemHandle(IpcHandle *handle, uint64_t address) {
    CHECK_CONTEXT("cuIpcGetMemHandle");
    pthread_mutex_lock(&lock);
    Allocation *one = find(address);
    if (one)
        memcpy(handle->reserved, one->name, NAME_BYTES);
    pthread_mutex_unlock(&lock);
    return one ? SUCCESS : INVALID_VALUE;
}

int cuIpcOpenMemHandle_v2(uint64_t *address, IpcHandle handle, unsigned flags) {
    CHECK_CONTEXT("cuIpcOpenMemHandle");
    if (flags != 1 || !memchr(handle.reserved, 0, NAME_BYTES) ||
        strncmp((char *)handle.reserved, "/neurona-cuda-stub-", 19))
        return INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    int code = OUT_OF_MEMORY;
    Allocation *one = NULL; /* as in CUDA, one that is open has the same address again */
    for (int i = 0; i < MAX_ALLOCATIONS && !one; i++)
        if (allocations[i].used && !allocations[i].owned && allocations[i].device == current() &&
            !memcmp(allocations[i].name, handle.reserved, NAME_BYTES))
            one = &allocations[i];
    if (one) {
        one->opened++;
        *address = (uint64_t)(uintptr_t)one->start;
        code = SUCCESS;
    } else if ((one = place())) {
        memcpy(one->name, handle.reserved, NAME_BYTES);
        code = open_object(one, 0);
        if (!code) {
            one->used = one->opened = 1;
            one->device = current();
            *address = (uint64_t)(uintptr_t)one->start;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

/* Only there so that ONNX Runtime's CUDA provider can be loaded. */
int cuTensorMapEncodeTiled(void) { return 801; /* CUDA_ERROR_NOT_SUPPORTED */ }

int cuMemcpyHtoD_v2(uint64_t target, const void *source, size_t size) {
    CHECK_CONTEXT("cuMemcpyHtoD");
    if (!inside(target, size))
        return INVALID_VALUE;
    memcpy((void *)(uintptr_t)target, source, size);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    CHECK_CONTEXT("cuMemcpyHtoDAsync");
    if (!stream || !inside(target, size))
        return INVALID_VALUE;
    memcpy((void *)(uintptr_t)target, source, size);
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    CHECK_CONTEXT("cuMemcpyDtoHAsync");
    if (!stream || !inside(source, size))
        return INVALID_VALUE;
    memcpy(target, (const void *)(uintptr_t)source, size);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *target, uint64_t source, size_t size) {
    CHECK_CONTEXT("cuMemcpyDtoH");
    if (!inside(source, size))
        return INVALID_VALUE;
    memcpy(target, (const void *)(uintptr_t)source, size);
    return SUCCESS;
}

int cuMemcpyDtoD_v2(uint64_t target, uint64_t source, size_t size) {
    CHECK_CONTEXT("cuMemcpyDtoD");
    if (!inside(target, size) || !inside(source, size))
        return INVALID_VALUE;
    memmove((void *)(uintptr_t)target, (const void *)(uintptr_t)source, size);
    return SUCCESS;
}
