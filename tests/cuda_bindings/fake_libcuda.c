/* A stand-in for libcuda.so.1 on a machine without a GPU: the functions of the driver API that the
 * project calls, in host memory, stricter than the driver where a mistake would otherwise hide.
 *
 * - Work runs only when its stream or an event behind it is synchronised, so a result that is read
 *   too early is wrong. Each copy takes one millisecond on the events' clock.
 * - Freeing does not wait. Work that then touches the memory is CUDA_ERROR_ILLEGAL_ADDRESS, after
 *   which every call fails.
 * - Every function that needs a context checks that the right one is current on the thread.
 * - Allocating, freeing or waiting on a thread that records a graph ends the recording, as
 *   cuStreamBeginCapture documents for the thread-local mode.
 *
 * The functions called fake_* let the tests set limits, make calls fail and count what is open.
 * Environment: FAKE_CUDA_DEVICES (1), FAKE_CUDA_VERSION (12060), FAKE_CUDA_TOTAL (1 GiB),
 * FAKE_CUDA_NO_MAP, FAKE_CUDA_FAIL="cuInit:999".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
    NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
    CAPTURE_WRONG_THREAD = 908
};

typedef struct { int code; const char *name, *text; } Text;
static const Text texts[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a capture from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

enum { DEVICE, HOST, STREAM, EVENT, EXEC, GRAPH, KINDS };
enum { COPY, RECORD, WAIT };

typedef struct Context { int retained, primary, destroyed; } Context;
typedef struct Event { Context *context; int alive, timed, asked, done; double at; struct Stream *on; } Event;
typedef struct { int what; char *to, *from; size_t bytes; Event *event; int mark; } Item;
typedef struct Graph { int alive, count; Item *items; Context *context; } Graph;
typedef struct Stream {
    Context *context;
    int alive, count, next, recording, spoilt;
    Item *items;
    Graph *graph;
    pthread_t thread;
    struct Stream *other;
} Stream;
typedef struct Block { char *start; size_t bytes; int kind, mapped; Context *context; struct Block *other; } Block;

static pthread_mutex_t lock;
static Context primary[8];
static __thread Context *stack[64];
static __thread int depth;
static __thread int mode; /* cuThreadExchangeStreamCaptureMode: 0 global, 1 thread-local, 2 relaxed */
static Block *blocks;
static Stream *streams;
static int open_now[KINDS], started, lost, leaked;
static size_t used;
static double clock_ms;
static char *calls;
static size_t calls_bytes, calls_room;
static struct { char name[64]; int code, times; } failing[16];

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}
static long total_bytes = -1;
static long total(void) { return total_bytes >= 0 ? total_bytes : setting("FAKE_CUDA_TOTAL", 1L << 30); }

void fake_fail(const char *name, int code, int times) {
    for (int i = 0; i < 16; i++)
        if (!failing[i].times) {
            snprintf(failing[i].name, sizeof failing[i].name, "%s", name);
            failing[i].code = code;
            failing[i].times = times;
            return;
        }
}
__attribute__((constructor)) static void begin(void) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &kind);
    char text[128];
    snprintf(text, sizeof text, "%s", getenv("FAKE_CUDA_FAIL") ? getenv("FAKE_CUDA_FAIL") : "");
    char *colon = strchr(text, ':');
    if (colon) {
        *colon = 0;
        fake_fail(text, atoi(colon + 1), 1 << 30);
    }
}
void fake_total(long bytes) { total_bytes = bytes; }
int fake_open(int kind) { return open_now[kind]; }
int fake_retained(int device) { return primary[device].retained; }
int fake_depth(void) { return depth; }
int fake_leaked(void) { return leaked; }
const char *fake_calls(void) { return calls ? calls : ""; }
void fake_clear_calls(void) { calls_bytes = 0; if (calls) calls[0] = 0; }
void *fake_current(void) { return depth ? stack[depth - 1] : NULL; }

static void note(const char *name) {
    size_t more = strlen(name) + 1;
    if (calls_bytes + more + 1 > calls_room) calls = realloc(calls, calls_room = 2 * (calls_room + more + 1));
    calls_bytes += sprintf(calls + calls_bytes, "%s ", name);
}
static int failure(const char *name) {
    note(name);
    for (int i = 0; i < 16; i++)
        if (failing[i].times && !strcmp(failing[i].name, name)) {
            failing[i].times--;
            if (failing[i].code >= 700 && failing[i].code < 720) lost = failing[i].code;
            return failing[i].code;
        }
    return OK;
}
static void leave(int *held) { if (*held) pthread_mutex_unlock(&lock); }
#define ENTER(name) \
    int held __attribute__((cleanup(leave))) = (pthread_mutex_lock(&lock), 1); \
    { int code_ = failure(name); if (code_) return code_; }
#define NEED_START if (!started) return NOT_INITIALIZED;
#define NEED_CONTEXT \
    NEED_START \
    if (lost) return lost; \
    if (!depth || stack[depth - 1]->destroyed) return INVALID_CONTEXT; \
    Context *here = stack[depth - 1]; (void)here;
#define NEED(thing) if (!(thing) || !(thing)->alive || (thing)->context != here) return INVALID_HANDLE;

/* What cuStreamBeginCapture calls potentially unsafe, on a thread that records. */
static int spoils(void) {
    if (mode == 2) return OK;
    for (Stream *s = streams; s; s = s->other)
        if (s->alive && s->recording && pthread_equal(s->thread, pthread_self())) {
            s->spoilt = 1;
            return CAPTURE_UNSUPPORTED;
        }
    return OK;
}
#define SAFE { int code_ = spoils(); if (code_) return code_; }

static int inside(const char *address, size_t bytes) {
    for (Block *b = blocks; b; b = b->other)
        if (address >= b->start && address + bytes <= b->start + b->bytes) return 1;
    return 0;
}
static void put(Stream *s, Item item) {
    int *count = s->recording ? &s->graph->count : &s->count;
    Item **items = s->recording ? &s->graph->items : &s->items;
    *items = realloc(*items, (*count + 1) * sizeof(Item));
    (*items)[(*count)++] = item;
}
static int run(Stream *s, Event *until, int mark) {
    while (s->next < s->count && !lost && !(until && until->done >= mark)) {
        Item item = s->items[s->next++];
        if (item.what == COPY) {
            if (!inside(item.to, item.bytes) || !inside(item.from, item.bytes)) return lost = ILLEGAL_ADDRESS;
            memcpy(item.to, item.from, item.bytes);
            clock_ms += 1;
        } else if (item.what == RECORD) {
            item.event->done = item.mark;
            item.event->at = clock_ms;
        } else if (item.event->done < item.mark && item.event->on) {
            run(item.event->on, item.event, item.mark);
        }
    }
    if (s->next == s->count) s->next = s->count = 0;
    return lost;
}

int cuInit(unsigned flags) { ENTER("cuInit"); if (flags) return INVALID_VALUE; started = 1; return setting("FAKE_CUDA_DEVICES", 1) ? OK : NO_DEVICE; }
int cuDriverGetVersion(int *version) { ENTER("cuDriverGetVersion"); *version = setting("FAKE_CUDA_VERSION", 12060); return OK; }
int cuDeviceGetCount(int *count) { ENTER("cuDeviceGetCount"); NEED_START *count = setting("FAKE_CUDA_DEVICES", 1); return OK; }
static int bad_device(int device) { return device < 0 || device >= setting("FAKE_CUDA_DEVICES", 1); }
int cuDeviceGet(int *device, int number) { ENTER("cuDeviceGet"); NEED_START if (bad_device(number)) return INVALID_DEVICE; *device = number; return OK; }
int cuDeviceGetName(char *name, int bytes, int device) { ENTER("cuDeviceGetName"); NEED_START if (bad_device(device)) return INVALID_DEVICE; snprintf(name, bytes, "Fake Orin %d", device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { ENTER("cuDeviceTotalMem"); NEED_START if (bad_device(device)) return INVALID_DEVICE; *bytes = total(); return OK; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; *major = 8; *minor = 7; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER("cuDeviceGetAttribute");
    NEED_START
    if (bad_device(device)) return INVALID_DEVICE;
    switch (attribute) {
    case 75: *value = 8; return OK;
    case 76: *value = 7; return OK;
    case 18: *value = 1; return OK;
    case 19: *value = !getenv("FAKE_CUDA_NO_MAP"); return OK;
    }
    return INVALID_VALUE;
}

static void destroy_all_of(Context *context) {
    for (Block **b = &blocks; *b;) {
        if ((*b)->context != context) { b = &(*b)->other; continue; }
        Block *gone = *b;
        leaked++;
        open_now[gone->kind]--;
        *b = gone->other; /* its memory stays mapped, so that a test fails instead of crashing */
    }
    for (Stream *s = streams; s; s = s->other)
        if (s->alive && s->context == context) { s->alive = 0; open_now[STREAM]--; leaked++; }
}
/* A new process, as far as errors, limits and what was left open go. */
void fake_restart(void) {
    memset(failing, 0, sizeof failing);
    lost = 0;
    total_bytes = -1;
    used = 0;
    for (int i = 0; i < 8; i++) destroy_all_of(&primary[i]);
    memset(open_now, 0, sizeof open_now);
    leaked = 0;
    fake_clear_calls();
}
int cuDevicePrimaryCtxRetain(Context **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    NEED_START
    if (bad_device(device)) return INVALID_DEVICE;
    primary[device].primary = 1;
    primary[device].destroyed = 0;
    primary[device].retained++;
    *context = &primary[device];
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER("cuDevicePrimaryCtxRelease");
    NEED_START
    if (bad_device(device) || !primary[device].retained) return INVALID_CONTEXT;
    if (!--primary[device].retained) {
        primary[device].destroyed = 1;
        destroy_all_of(&primary[device]);
    }
    return OK;
}
int cuCtxCreate_v2(Context **context, unsigned flags, int device) {
    (void)flags;
    ENTER("cuCtxCreate");
    NEED_START
    if (bad_device(device)) return INVALID_DEVICE;
    stack[depth++] = *context = calloc(1, sizeof(Context));
    return OK;
}
int cuCtxCreate_v4(Context **context, void *parameters, unsigned flags, int device) { (void)parameters; return cuCtxCreate_v2(context, flags, device); }
int cuCtxDestroy_v2(Context *context) { ENTER("cuCtxDestroy"); NEED_START context->destroyed = 1; destroy_all_of(context); if (depth && stack[depth - 1] == context) depth--; return OK; }
int cuCtxDetach(Context *context) { return cuCtxDestroy_v2(context); } /* what pycuda calls */
int cuCtxPushCurrent_v2(Context *context) { ENTER("cuCtxPushCurrent"); NEED_START if (!context) return INVALID_CONTEXT; if (depth == 64) return INVALID_VALUE; stack[depth++] = context; return OK; }
int cuCtxPopCurrent_v2(Context **context) { ENTER("cuCtxPopCurrent"); NEED_START if (!depth) return INVALID_CONTEXT; Context *top = stack[--depth]; if (context) *context = top; return OK; }
int cuCtxGetCurrent(Context **context) { ENTER("cuCtxGetCurrent"); NEED_START *context = depth ? stack[depth - 1] : NULL; return OK; }
int cuCtxSetCurrent(Context *context) {
    ENTER("cuCtxSetCurrent");
    NEED_START
    if (depth) depth--;
    if (context) stack[depth++] = context;
    return OK;
}
int cuCtxGetDevice(int *device) { ENTER("cuCtxGetDevice"); NEED_CONTEXT *device = here->primary ? (int)(here - primary) : 0; return OK; }
int cuCtxSynchronize(void) { ENTER("cuCtxSynchronize"); NEED_CONTEXT SAFE for (Stream *s = streams; s; s = s->other) if (s->alive && s->context == here) run(s, NULL, 0); return lost; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *all) { ENTER("cuMemGetInfo"); NEED_CONTEXT *all = total(); *free_bytes = *all > used ? *all - used : 0; return OK; }
static int allocate(char **address, size_t bytes, int kind, int mapped, Context *context) {
    if (!bytes) return INVALID_VALUE;
    if (kind == DEVICE && used + bytes > (size_t)total()) return OUT_OF_MEMORY;
    Block *b = calloc(1, sizeof *b);
    b->start = malloc(bytes);
    if (!b->start) return free(b), OUT_OF_MEMORY;
    memset(b->start, 0xCD, bytes); /* what is read too early must not look right */
    b->bytes = bytes;
    b->kind = kind;
    b->mapped = mapped;
    b->context = context;
    b->other = blocks;
    blocks = b;
    open_now[kind]++;
    if (kind == DEVICE) used += bytes;
    *address = b->start;
    return OK;
}
static int release(char *address, int kind, Context *context) {
    for (Block **b = &blocks; *b; b = &(*b)->other)
        if ((*b)->start == address && (*b)->kind == kind) {
            Block *gone = *b;
            if (gone->context != context) return INVALID_CONTEXT;
            *b = gone->other;
            memset(gone->start, 0xDD, gone->bytes);
            if (kind == DEVICE) used -= gone->bytes;
            open_now[kind]--;
            free(gone->start);
            free(gone);
            return OK;
        }
    return INVALID_VALUE;
}
int cuMemAlloc_v2(char **address, size_t bytes) { ENTER("cuMemAlloc"); NEED_CONTEXT SAFE return allocate(address, bytes, DEVICE, 0, here); }
int cuMemFree_v2(char *address) { ENTER("cuMemFree"); NEED_CONTEXT SAFE return release(address, DEVICE, here); }
int cuMemHostAlloc(char **address, size_t bytes, unsigned flags) { ENTER("cuMemHostAlloc"); NEED_CONTEXT SAFE if (!(flags & 1)) return INVALID_VALUE; return allocate(address, bytes, HOST, (flags & 2) != 0, here); }
int cuMemFreeHost(char *address) { ENTER("cuMemFreeHost"); NEED_CONTEXT SAFE return release(address, HOST, here); }
int cuMemHostGetDevicePointer_v2(char **on_device, char *address, unsigned flags) {
    ENTER("cuMemHostGetDevicePointer");
    NEED_CONTEXT
    if (flags) return INVALID_VALUE;
    for (Block *b = blocks; b; b = b->other)
        if (b->start == address && b->mapped) return *on_device = address, OK;
    return INVALID_VALUE;
}

static int copy(Stream *s, char *to, char *from, size_t bytes) {
    put(s, (Item){.what = COPY, .to = to, .from = from, .bytes = bytes});
    return OK;
}
int cuMemcpyHtoDAsync_v2(char *to, char *from, size_t bytes, Stream *s) { ENTER("cuMemcpyHtoDAsync"); NEED_CONTEXT NEED(s) return copy(s, to, from, bytes); }
int cuMemcpyDtoHAsync_v2(char *to, char *from, size_t bytes, Stream *s) { ENTER("cuMemcpyDtoHAsync"); NEED_CONTEXT NEED(s) return copy(s, to, from, bytes); }

int cuStreamCreate(Stream **stream, unsigned flags) {
    ENTER("cuStreamCreate");
    NEED_CONTEXT
    if (flags != 1) return INVALID_VALUE; /* non-blocking: the project makes no other kind */
    Stream *s = calloc(1, sizeof *s);
    s->alive = 1;
    s->context = here;
    s->other = streams;
    streams = *stream = s; /* never freed, so that a late use is an error and no crash */
    open_now[STREAM]++;
    return OK;
}
int cuStreamDestroy_v2(Stream *s) { ENTER("cuStreamDestroy"); NEED_CONTEXT NEED(s) run(s, NULL, 0); s->alive = 0; free(s->items); s->items = NULL; s->count = s->next = 0; open_now[STREAM]--; return lost; }
int cuStreamSynchronize(Stream *s) {
    ENTER("cuStreamSynchronize");
    NEED_CONTEXT
    NEED(s)
    if (s->recording) return s->spoilt = 1, CAPTURE_UNSUPPORTED;
    return run(s, NULL, 0);
}
int cuStreamWaitEvent(Stream *s, Event *e, unsigned flags) { ENTER("cuStreamWaitEvent"); NEED_CONTEXT NEED(s) NEED(e) if (flags) return INVALID_VALUE; put(s, (Item){.what = WAIT, .event = e, .mark = e->asked}); return OK; }
int cuStreamBeginCapture_v2(Stream *s, int how) {
    ENTER("cuStreamBeginCapture");
    NEED_CONTEXT
    NEED(s)
    if (how != 1 || s->recording) return INVALID_VALUE;
    s->recording = 1;
    s->spoilt = 0;
    s->thread = pthread_self();
    s->graph = calloc(1, sizeof(Graph));
    s->graph->alive = 1;
    s->graph->context = here;
    return OK;
}
int cuStreamEndCapture(Stream *s, Graph **graph) {
    ENTER("cuStreamEndCapture");
    NEED_CONTEXT
    NEED(s)
    *graph = NULL;
    if (!s->recording) return INVALID_VALUE;
    if (!pthread_equal(s->thread, pthread_self())) return CAPTURE_WRONG_THREAD;
    s->recording = 0;
    if (s->spoilt) return CAPTURE_INVALIDATED;
    open_now[GRAPH]++;
    *graph = s->graph;
    return OK;
}
int cuThreadExchangeStreamCaptureMode(int *wanted) { ENTER("cuThreadExchangeStreamCaptureMode"); if (*wanted < 0 || *wanted > 2) return INVALID_VALUE; int before = mode; mode = *wanted; *wanted = before; return OK; }

int cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long flags) {
    ENTER("cuGraphInstantiateWithFlags");
    NEED_CONTEXT
    NEED(graph)
    if (flags) return INVALID_VALUE;
    Graph *made = calloc(1, sizeof *made);
    *made = *graph;
    made->items = malloc((graph->count + 1) * sizeof(Item));
    memcpy(made->items, graph->items ? graph->items : made->items, graph->count * sizeof(Item));
    open_now[EXEC]++;
    *exec = made;
    return OK;
}
int cuGraphDestroy(Graph *g) { ENTER("cuGraphDestroy"); if (!g || !g->alive) return INVALID_HANDLE; g->alive = 0; open_now[GRAPH]--; return OK; }
int cuGraphExecDestroy(Graph *g) { ENTER("cuGraphExecDestroy"); NEED_CONTEXT NEED(g) g->alive = 0; open_now[EXEC]--; return OK; }
int cuGraphLaunch(Graph *g, Stream *s) { ENTER("cuGraphLaunch"); NEED_CONTEXT NEED(g) NEED(s) for (int i = 0; i < g->count; i++) put(s, g->items[i]); return OK; }

int cuEventCreate(Event **event, unsigned flags) {
    ENTER("cuEventCreate");
    NEED_CONTEXT
    Event *e = calloc(1, sizeof *e);
    e->alive = 1;
    e->context = here;
    e->timed = !(flags & 2);
    *event = e; /* never freed: see cuStreamCreate */
    open_now[EVENT]++;
    return OK;
}
int cuEventDestroy_v2(Event *e) { ENTER("cuEventDestroy"); NEED_CONTEXT NEED(e) e->alive = 0; open_now[EVENT]--; return OK; }
int cuEventRecord(Event *e, Stream *s) { ENTER("cuEventRecord"); NEED_CONTEXT NEED(e) NEED(s) e->on = s; put(s, (Item){.what = RECORD, .event = e, .mark = ++e->asked}); return OK; }
int cuEventSynchronize(Event *e) { ENTER("cuEventSynchronize"); NEED_CONTEXT NEED(e) SAFE return e->on ? run(e->on, e, e->asked) : OK; }
int cuEventElapsedTime(float *ms, Event *first, Event *second) {
    ENTER("cuEventElapsedTime");
    NEED_CONTEXT
    NEED(first)
    NEED(second)
    if (!first->timed || !second->timed || !first->asked || !second->asked) return INVALID_HANDLE;
    if (first->done < first->asked || second->done < second->asked) return NOT_READY;
    *ms = (float)(second->at - first->at);
    return OK;
}
int cuEventElapsedTime_v2(float *ms, Event *first, Event *second) { return cuEventElapsedTime(ms, first, second); }

static const Text *text_of(int code) {
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].code == code) return &texts[i];
    return NULL;
}
int cuGetErrorName(int code, const char **name) { const Text *t = text_of(code); *name = t ? t->name : NULL; return t ? OK : INVALID_VALUE; }
int cuGetErrorString(int code, const char **text) { const Text *t = text_of(code); *text = t ? t->text : NULL; return t ? OK : INVALID_VALUE; }

/* cuda-bindings asks for every function by name and CUDA version; the newest of ours is meant, but
 * for the one whose arguments changed. */
static void *function_called(const char *symbol, int version) {
    static void *self;
    char versioned[128];
    Dl_info where;
    if (!self && dladdr((void *)function_called, &where)) self = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (!self) return NULL;
    if (!strcmp(symbol, "cuGetProcAddress") && version < 12000) return dlsym(self, symbol);
    for (int number = 4; number > 1; number--) {
        snprintf(versioned, sizeof versioned, "%s_v%d", symbol, number);
        void *found = dlsym(self, versioned);
        if (found) return found;
    }
    return dlsym(self, symbol);
}
int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    (void)flags;
    *function = function_called(symbol, version);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) { return cuGetProcAddress_v2(symbol, function, version, flags, NULL); }
