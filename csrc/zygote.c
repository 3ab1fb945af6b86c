/* The zygote's loop: runs in, one child each, reports out. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
/* The shortest time between two looks at a child's clocks. */
#define CHECK_MIN_NS 1000000LL
/* What a small run touches of its slot. It is zeroed in place, the rest is given back. */
#define SLOT_HOT_BYTES 16384u
/* Reports wait for each other up to this size while more runs are at hand. */
#define OUTBOX_FLUSH_BYTES 16384u
/* ... and for this long. */
#define OUTBOX_FLUSH_NS 5000000LL
#define INBOX_RUNS 8
/* A zygote was started with a handful of descriptors, and its limit is 16. */
#define FD_MAX 1024
/* Where the host refuses a process: the pause before the next try, ... */
#define FORK_PAUSE_NS 20000000LL
/* ... and how long a run waits while no child of this zygote is about to make room. */
#define FORK_PATIENCE_NS 2000000000LL

/* A child at its run, or the room for one. */
struct child {
    struct sbx_slot *slot;
    pid_t pid; /* 0: the slot is free */
    /* Kept here, for the child can write its slot. */
    uint32_t run_id, input_count, output_offset;
    int64_t start_ns;
    int64_t next_check_ns;
    enum sbx_outcome killed_for; /* OK: nobody killed it */
};

struct zone {
    unsigned char *bytes;
    size_t capacity, start, end;
};

/* In memory that no child maps, and so that no fork makes the zygote copy. */
struct sbx_zygote {
    struct sbx_zygote_config config;
    volatile uint32_t *held; /* tokens in this zygote's hands, for the client to read */
    uint32_t *recalled; /* the client's: runs up to this id go back unless begun; 0: none */
    struct child *children;
    size_t slot_bytes;
    struct zone inbox, outbox;
    int64_t flush_by_ns;       /* when the oldest report in the outbox must be on its way */
    int64_t fork_again_ns;     /* no fork before this time; 0: now */
    int64_t refused_ns, refused_since_ns; /* last fork refused; first of those in a row */
    pid_t pid;
    bool input_ended;
};

/* ---- System calls of the zygote alone: -1 with errno, as in the C library --------------------- */

static long gate(long number, long a, long b, long c, long d, long e)
{
    long result = sbx_gate(number, a, b, c, d, e, 0);
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) < 0)
        return 0;
    return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* The CPU clock of another process, as clock_getcpuclockid() makes it. */
static clockid_t cpu_clock(pid_t pid) { return (clockid_t)(~(unsigned)pid << 3 | 2u); }

/* ---- Setting up ------------------------------------------------------------------------------- */

static void *map_private(size_t byte_count)
{
    void *at = mmap(NULL, byte_count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || madvise(at, byte_count, MADV_DONTFORK) < 0)
        return NULL;
    return at;
}

/* A guard page on both sides keeps neighbouring slots from being merged into one mapping. */
static struct sbx_slot *map_slot(size_t byte_count)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *room = mmap(NULL, byte_count + 2 * page, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *at;
    if (room == MAP_FAILED)
        return NULL;
    at = mmap(room + page, byte_count, PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (at == MAP_FAILED || madvise(room, byte_count + 2 * page, MADV_DONTFORK) < 0)
        return NULL;
    return at;
}

/* The longest entries of so many inputs. */
static size_t output_bytes(const struct sbx_limits *limits, uint32_t input_count)
{
    return SBX_ALIGN8(sizeof(struct sbx_entry) + limits->output_bytes) * input_count;
}

static size_t slot_size(const struct sbx_limits *limits)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = sizeof(struct sbx_slot) + limits->run_bytes + 8 + SLOT_HOT_BYTES +
                   output_bytes(limits, limits->input_count);
    return (bytes + page - 1) / page * page;
}

int64_t sbx_zygote_own_bytes(const struct sbx_zygote *z)
{
    size_t slots = z->config.slot_count - 1;
    return (int64_t)(slots * z->slot_bytes + z->inbox.capacity + z->outbox.capacity);
}

struct sbx_zygote *sbx_zygote_open(const struct sbx_zygote_config *config)
{
    struct sbx_zygote *z = map_private(sizeof *z + config->slot_count * sizeof *z->children);
    uint32_t *held;

    if (z == NULL)
        goto fail;
    z->config = *config;
    z->slot_bytes = slot_size(&config->limits);
    z->inbox.capacity = (size_t)config->limits.run_bytes * 2 + 65536 * INBOX_RUNS;
    z->outbox.capacity = z->slot_bytes + 2 * OUTBOX_FLUSH_BYTES;
    z->inbox.bytes = map_private(z->inbox.capacity);
    z->outbox.bytes = map_private(z->outbox.capacity);
    z->children = (struct child *)(z + 1);
    if (z->inbox.bytes == NULL || z->outbox.bytes == NULL)
        goto fail;
    for (uint32_t i = 0; i < config->slot_count; i++)
        if ((z->children[i].slot = map_slot(z->slot_bytes)) == NULL)
            goto fail;
    held = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, config->held_fd, 0);
    if (held == MAP_FAILED || madvise(held, 4096, MADV_DONTFORK) < 0)
        goto fail;
    z->held = held + config->held_index;
    z->recalled = held + 4096 / sizeof *held / 2 + config->held_index;
    *z->held = 0;
    return z;
fail: /* the process is about to end with this error, which frees everything */
    PyErr_SetFromErrno(PyExc_OSError);
    return NULL;
}

/* ---- Tokens ----------------------------------------------------------------------------------- */

static bool take_token(struct sbx_zygote *z)
{
    uint64_t one;
    if (gate(SYS_read, z->config.tokens_fd, (long)&one, sizeof one, 0, 0) != sizeof one)
        return false;
    ++*z->held;
    return true;
}

static void give_token(struct sbx_zygote *z)
{
    uint64_t one = 1;
    --*z->held;
    gate(SYS_write, z->config.tokens_fd, (long)&one, sizeof one, 0, 0);
}

/* ---- The child's side of the fork ------------------------------------------------------------- */

/*
 * The child is the only thread of a copy of a process that had one thread. Until it calls
 * sbx_run_program it makes system calls and nothing else: no allocation, no lock, no errno that
 * anyone reads, no return into the caller. From there on it is an interpreter like any other. It
 * ends by _exit alone, so that nothing of the zygote's (buffers, atexit) runs twice.
 *
 * The order matters: first everything that needs the gate, then the gate goes.
 */
static void enter_child(pid_t zygote, int64_t cpu_ns)
{
    rlim_t cpu_s = (rlim_t)(cpu_ns / SECOND_NS + 2);
    struct rlimit cpu = {cpu_s, cpu_s};

    sbx_gate(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
    if (sbx_gate(SYS_getppid, 0, 0, 0, 0, 0, 0) != zygote) /* it died before the call above */
        _exit(1);
    sbx_gate(SYS_prlimit64, 0, RLIMIT_CPU, (long)&cpu, 0, 0, 0);
    if (sbx_gate(SYS_close_range, 0, ~0u, 0, 0, 0, 0) < 0) /* before Linux 5.9 */
        for (int fd = 0; fd < FD_MAX; fd++)
            sbx_gate(SYS_close, fd, 0, 0, 0, 0, 0);
    if (sbx_gate_unmap() < 0)
        _exit(1);
}

static pid_t fork_child(void) { return (pid_t)gate(SYS_clone, SIGCHLD, 0, 0, 0, 0); }

/* ---- Runs ------------------------------------------------------------------------------------- */

static struct child *spare_child(struct sbx_zygote *z)
{
    for (uint32_t i = 0; i < z->config.slot_count; i++)
        if (z->children[i].pid == 0)
            return &z->children[i];
    return NULL;
}

static size_t running_count(const struct sbx_zygote *z)
{
    size_t count = 0;
    for (uint32_t i = 0; i < z->config.slot_count; i++)
        count += z->children[i].pid != 0;
    return count;
}

/* The complete frame at the head of the inbox, NULL if there is none yet. */
static const struct sbx_run *next_run(const struct sbx_zygote *z)
{
    const struct zone *in = &z->inbox;
    const struct sbx_run *run = (const struct sbx_run *)(in->bytes + in->start);
    if (in->end - in->start < sizeof *run || in->end - in->start < run->frame_bytes)
        return NULL;
    return run;
}

static bool is_sound(const struct sbx_zygote *z, const struct sbx_run *run)
{
    const struct sbx_limits *limits = &z->config.limits;
    return run->frame_bytes >= sizeof *run && run->frame_bytes % 8 == 0 &&
           run->frame_bytes - sizeof *run <= limits->run_bytes && run->input_count > 0 &&
           run->input_count <= limits->input_count &&
           run->code_bytes <= run->frame_bytes - sizeof *run;
}

/* Copies the head of the inbox into the child's slot, which has been wiped. */
static void fill_slot(struct sbx_zygote *z, struct child *child, const struct sbx_run *run)
{
    struct sbx_slot *slot = child->slot;
    size_t body_bytes = run->frame_bytes - sizeof *run;
    child->run_id = run->id;
    child->input_count = run->input_count;
    child->output_offset = (uint32_t)SBX_ALIGN8(sizeof *slot + body_bytes);
    slot->run = *run;
    memcpy(slot->body, run + 1, body_bytes);
    slot->output_offset = child->output_offset;
    slot->output_capacity = (uint32_t)output_bytes(&z->config.limits, run->input_count);
    slot->input_start_wall_ns = child->start_ns;
}

/* No program finds anything of another one in its slot. */
static void wipe(struct sbx_zygote *z, struct sbx_slot *slot)
{
    memset(slot, 0, SLOT_HOT_BYTES);
    madvise((unsigned char *)slot + SLOT_HOT_BYTES, z->slot_bytes - SLOT_HOT_BYTES, MADV_REMOVE);
}

/* Takes the head of the inbox, or leaves it there and returns false where the system gives no
 * process. What the child needs to know stands in locals, for `z` is not mapped in it. */
static bool start_child(struct sbx_zygote *z, struct child *child,
                        const struct sbx_runtime *runtime)
{
    const struct sbx_limits *limits = &z->config.limits;
    const struct sbx_run *run = next_run(z);
    struct sbx_slot *slot = child->slot;
    int64_t first_limit_ns = limits->cpu_ns < limits->wall_ns ? limits->cpu_ns : limits->wall_ns;
    int64_t cpu_ns = limits->cpu_ns * run->input_count;
    pid_t zygote = z->pid, pid;

    child->killed_for = SBX_OK;
    child->start_ns = clock_ns(CLOCK_MONOTONIC);
    fill_slot(z, child, run);
    child->next_check_ns = child->start_ns + first_limit_ns;
    madvise(slot, z->slot_bytes, MADV_DOFORK);
    pid = fork_child();
    if (pid == 0) {
        enter_child(zygote, cpu_ns);
        sbx_run_program(slot, runtime);
        _exit(0);
    }
    madvise(slot, z->slot_bytes, MADV_DONTFORK);
    if (pid < 0) {
        wipe(z, slot);
        return false;
    }
    child->pid = pid;
    z->inbox.start += run->frame_bytes;
    return true;
}

/* ---- Reports ---------------------------------------------------------------------------------- */

/* Writes what is in the outbox; -1 with errno when the client is gone. */
static int flush(struct sbx_zygote *z)
{
    struct zone *out = &z->outbox;
    while (out->start < out->end) {
        long sent = gate(SYS_write, z->config.socket_fd, (long)(out->bytes + out->start),
                         (long)(out->end - out->start), 0, 0);
        if (sent < 0 && errno != EINTR)
            return -1;
        if (sent > 0)
            out->start += (size_t)sent;
    }
    out->start = out->end = 0;
    return 0;
}

static enum sbx_outcome how_it_ended(const struct sbx_zygote *z, const struct child *child,
                                     int status, const struct sbx_report *report)
{
    if (child->killed_for != SBX_OK)
        return child->killed_for;
    if (!WIFSIGNALED(status))
        return report->committed < child->input_count ? SBX_NO_RESULT : SBX_OK;
    switch (WTERMSIG(status)) {
    case SIGSYS:
        return SBX_VIOLATION;
    case SIGXCPU:
        return SBX_TIMEOUT_CPU;
    case SIGKILL: /* the kernel's doing: over the hard limit of CPU time, or out of memory */
        return report->cpu_ns >= z->config.limits.cpu_ns ? SBX_TIMEOUT_CPU : SBX_MEMORY;
    default:
        return SBX_CRASH;
    }
}

static int64_t timeval_ns(struct timeval t) { return t.tv_sec * SECOND_NS + t.tv_usec * 1000; }

/* Puts a report into the outbox; -1 with errno when the client is gone. */
static int post(struct sbx_zygote *z, struct sbx_report *frame, const void *entries, size_t used)
{
    struct zone *out = &z->outbox;
    frame->frame_bytes = (uint32_t)(sizeof *frame + used);
    if (out->end + frame->frame_bytes > out->capacity && flush(z) < 0)
        return -1;
    if (out->end == 0)
        z->flush_by_ns = clock_ns(CLOCK_MONOTONIC) + OUTBOX_FLUSH_NS;
    memcpy(out->bytes + out->end, frame, sizeof *frame);
    if (used)
        memcpy(out->bytes + out->end + sizeof *frame, entries, used);
    out->end += frame->frame_bytes;
    return 0;
}

/* The child is dead, so the slot does not change any more; what it holds may be anything. */
static int report(struct sbx_zygote *z, struct child *child, int status, const struct rusage *usage)
{
    const struct sbx_slot *slot = child->slot;
    size_t used = SBX_ALIGN8((size_t)slot->output_used);
    struct sbx_report frame = {
        .id = child->run_id,
        .signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
        .committed = slot->committed,
        .faults = (uint32_t)usage->ru_minflt,
        .cpu_ns = timeval_ns(usage->ru_utime) + timeval_ns(usage->ru_stime),
        .wall_ns = clock_ns(CLOCK_MONOTONIC) - child->start_ns,
    };

    bool is_forged = used > output_bytes(&z->config.limits, child->input_count) ||
                     frame.committed > child->input_count;
    if (is_forged)
        used = frame.committed = 0;
    frame.ended = is_forged ? SBX_VIOLATION : how_it_ended(z, child, status, &frame);
    return post(z, &frame, (const unsigned char *)slot + child->output_offset, used);
}

/* Answers the head of the inbox without a child: the sandbox's failure, not the program's. */
static int refuse(struct sbx_zygote *z)
{
    struct sbx_report frame = {.id = next_run(z)->id, .ended = SBX_SANDBOX_FAILURE};
    z->inbox.start += next_run(z)->frame_bytes;
    return post(z, &frame, NULL, 0);
}

static struct child *child_of(struct sbx_zygote *z, pid_t pid)
{
    for (uint32_t i = 0; i < z->config.slot_count; i++)
        if (z->children[i].pid == pid)
            return &z->children[i];
    return NULL;
}

/* Takes leave of every child that has died; -1 with errno when the client is gone. */
static int reap(struct sbx_zygote *z, bool reporting)
{
    struct rusage usage;
    int status, failed = 0;
    pid_t pid;

    while ((pid = (pid_t)gate(SYS_wait4, -1, (long)&status, WNOHANG, (long)&usage, 0)) > 0) {
        struct child *child = child_of(z, pid);
        if (child == NULL)
            continue;
        if (reporting && report(z, child, status, &usage) < 0)
            failed = -1;
        wipe(z, child->slot);
        child->pid = 0;
        z->fork_again_ns = 0;
        give_token(z);
    }
    return failed;
}

/* ---- Limits ----------------------------------------------------------------------------------- */

static void kill_child(const struct child *child)
{
    if (child->pid > 0) /* 0 and below are groups */
        gate(SYS_kill, child->pid, SIGKILL, 0, 0, 0);
}

/* Kills a child whose current input is over a limit. What the child says about when that input
 * began is believed only as far as all inputs together stay within their limits. */
static void check_child(struct sbx_zygote *z, struct child *child, int64_t now_ns)
{
    const struct sbx_limits *limits = &z->config.limits;
    const struct sbx_slot *slot = child->slot;
    int64_t inputs = child->input_count;
    int64_t cpu_ns = clock_ns(cpu_clock(child->pid)), wall_ns = now_ns - child->start_ns;
    int64_t cpu_begin_ns = slot->input_start_cpu_ns;
    int64_t wall_begin_ns = slot->input_start_wall_ns - child->start_ns;
    int64_t cpu_left_ns, wall_left_ns;

    if (inputs <= 1 || cpu_begin_ns < 0 || cpu_begin_ns > cpu_ns)
        cpu_begin_ns = 0;
    if (inputs <= 1 || wall_begin_ns < 0 || wall_begin_ns > wall_ns)
        wall_begin_ns = 0;
    cpu_left_ns = limits->cpu_ns - (cpu_ns - cpu_begin_ns);
    wall_left_ns = limits->wall_ns - (wall_ns - wall_begin_ns);
    if (cpu_left_ns <= 0 || cpu_ns >= limits->cpu_ns * inputs)
        child->killed_for = SBX_TIMEOUT_CPU;
    else if (wall_left_ns <= 0 || wall_ns >= limits->wall_ns * inputs)
        child->killed_for = SBX_TIMEOUT_WALL;
    if (child->killed_for != SBX_OK) {
        kill_child(child);
        child->next_check_ns = INT64_MAX;
        return;
    }
    if (wall_left_ns < cpu_left_ns)
        cpu_left_ns = wall_left_ns;
    child->next_check_ns = now_ns + (cpu_left_ns > CHECK_MIN_NS ? cpu_left_ns : CHECK_MIN_NS);
}

/* Returns when to look again, INT64_MAX if nothing runs. */
static int64_t check_children(struct sbx_zygote *z, int64_t now_ns)
{
    int64_t next_ns = INT64_MAX;
    for (uint32_t i = 0; i < z->config.slot_count; i++) {
        struct child *child = &z->children[i];
        if (child->pid == 0)
            continue;
        if (child->next_check_ns <= now_ns)
            check_child(z, child, now_ns);
        if (child->next_check_ns < next_ns)
            next_ns = child->next_check_ns;
    }
    return next_ns;
}

/* ---- The loop --------------------------------------------------------------------------------- */

/* Reads what has come. */
static void receive(struct sbx_zygote *z)
{
    struct zone *in = &z->inbox;
    long got;

    if (in->start == in->end) {
        in->start = in->end = 0;
    } else if (in->end == in->capacity) {
        memmove(in->bytes, in->bytes + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    got = gate(SYS_read, z->config.socket_fd, (long)(in->bytes + in->end),
               (long)(in->capacity - in->end), 0, 0);
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN))
        z->input_ended = true;
    if (got > 0)
        in->end += (size_t)got;
}

/* The host gave no process: the run waits for a child of ours to end, or for a while. */
static int put_off(struct sbx_zygote *z)
{
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (running_count(z) || now_ns - z->refused_ns > FORK_PATIENCE_NS)
        z->refused_since_ns = now_ns;
    z->refused_ns = now_ns;
    if (now_ns - z->refused_since_ns >= FORK_PATIENCE_NS)
        return refuse(z);
    z->fork_again_ns = now_ns + FORK_PAUSE_NS;
    return 0;
}

static bool is_recalled(struct sbx_zygote *z, uint32_t id)
{
    uint32_t last = __atomic_load_n(z->recalled, __ATOMIC_RELAXED);
    if (last == 0)
        return false;
    if ((int32_t)(id - last) <= 0)
        return true;
    /* Ids come round again: a recall that is over must not meet them. */
    __atomic_compare_exchange_n(z->recalled, &last, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return false;
}

/* Starts what can be started. *short_of_tokens: a run waits for another zygote's child. */
static int start_children(struct sbx_zygote *z, const struct sbx_runtime *runtime,
                          bool *short_of_tokens)
{
    const struct sbx_run *run;
    *short_of_tokens = false;
    while ((run = next_run(z)) != NULL) {
        struct child *child = spare_child(z);
        if (!is_sound(z, run)) {
            errno = EPROTO;
            return -1;
        }
        if (is_recalled(z, run->id)) {
            if (refuse(z) < 0)
                return -1;
            continue;
        }
        if (child == NULL)
            return 0;
        if (z->fork_again_ns > clock_ns(CLOCK_MONOTONIC))
            return 0;
        if (!take_token(z)) {
            *short_of_tokens = true;
            return 0;
        }
        if (start_child(z, child, runtime)) {
            z->refused_ns = z->fork_again_ns = 0;
            continue;
        }
        give_token(z);
        if (put_off(z) < 0)
            return -1;
    }
    return 0;
}

/* Sleeps until a run, a dead child, a token or a limit; reports go out first. */
static void wait_for_work(struct sbx_zygote *z, bool short_of_tokens, int64_t wake_ns)
{
    sigset_t none;
    struct timespec timeout;
    struct zone *in = &z->inbox;
    bool has_room = in->end < in->capacity || in->start > 0;
    struct pollfd fds[2] = {
        {.fd = has_room ? z->config.socket_fd : -1, .events = POLLIN},
        {.fd = short_of_tokens ? z->config.tokens_fd : -1, .events = POLLIN},
    };
    int64_t left_ns = wake_ns - clock_ns(CLOCK_MONOTONIC);
    bool limited = wake_ns != INT64_MAX;

    if (left_ns < 0)
        left_ns = 0;
    timeout = (struct timespec){left_ns / SECOND_NS, left_ns % SECOND_NS};
    sigemptyset(&none);
    /* The kernel's signal sets have 8 bytes. Dead children interrupt; nothing else is unblocked. */
    if (gate(SYS_ppoll, (long)fds, 2, limited ? (long)&timeout : 0, (long)&none, 8) > 0 &&
        fds[0].revents)
        receive(z);
}

static void ignore_signal(int number) { (void)number; }

/* SIGCHLD interrupts the wait and is otherwise blocked; the terminal's signals are the client's. */
static void set_signals(void)
{
    struct sigaction interrupt = {.sa_handler = ignore_signal}, ignore = {.sa_handler = SIG_IGN};
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child, NULL);
    sigaction(SIGCHLD, &interrupt, NULL);
    sigaction(SIGINT, &ignore, NULL);
    sigaction(SIGQUIT, &ignore, NULL);
    sigaction(SIGHUP, &ignore, NULL);
    sigaction(SIGTERM, &ignore, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static void kill_children(struct sbx_zygote *z)
{
    for (uint32_t i = 0; i < z->config.slot_count; i++)
        kill_child(&z->children[i]);
    while (running_count(z)) {
        struct timespec soon = {0, CHECK_MIN_NS};
        sigset_t none;
        sigemptyset(&none);
        reap(z, false);
        if (running_count(z))
            gate(SYS_ppoll, 0, 0, (long)&soon, (long)&none, 8);
    }
}

int sbx_zygote_serve(struct sbx_zygote *z, const struct sbx_runtime *runtime,
                     const void *hello, size_t hello_bytes)
{
    int failed = hello_bytes > z->outbox.capacity;

    z->pid = (pid_t)gate(SYS_getpid, 0, 0, 0, 0, 0);
    set_signals();
    if (!failed) {
        memcpy(z->outbox.bytes, hello, hello_bytes);
        z->outbox.end = hello_bytes;
        failed = flush(z) < 0;
    }
    while (!failed && !z->input_ended) {
        bool short_of_tokens;
        int64_t now_ns, wake_ns;

        failed = reap(z, true) < 0 || start_children(z, runtime, &short_of_tokens) < 0;
        if (failed)
            break;
        now_ns = clock_ns(CLOCK_MONOTONIC);
        wake_ns = check_children(z, now_ns);
        /* While a backlog keeps the slots full, reports travel together. */
        if (next_run(z) == NULL || z->outbox.end >= OUTBOX_FLUSH_BYTES || now_ns >= z->flush_by_ns)
            failed = flush(z) < 0;
        if (z->outbox.end && z->flush_by_ns < wake_ns)
            wake_ns = z->flush_by_ns;
        if (z->fork_again_ns > now_ns && z->fork_again_ns < wake_ns)
            wake_ns = z->fork_again_ns;
        if (!failed)
            wait_for_work(z, short_of_tokens, wake_ns);
    }
    kill_children(z);
    if (failed)
        PyErr_SetFromErrno(PyExc_OSError);
    return failed ? -1 : 0;
}

int sbx_fork_floor(uint32_t count, int64_t *cpu_ns, uint32_t *faults)
{
    int64_t start_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);

    *cpu_ns = 0;
    *faults = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct rusage usage;
        int status;
        pid_t pid = fork_child();
        if (pid == 0)
            _exit(0);
        if (pid < 0 || gate(SYS_wait4, pid, (long)&status, 0, (long)&usage, 0) != pid) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        *cpu_ns += timeval_ns(usage.ru_utime) + timeval_ns(usage.ru_stime);
        *faults += (uint32_t)usage.ru_minflt;
    }
    *cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns;
    return 0;
}
