/* The system calls of a zygote, a child and a compiler: one table, one filter.
 *
 * What innocent code may run into (files, clocks, information) is answered with EPERM, so that it
 * becomes an exception of the program. Everything else that is not allowed, known or not, kills
 * the process, which is the outcome "violation".
 */
#include "sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define X32_BIT 0x40000000u
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000u
#endif
#define RET_KILL SECCOMP_RET_KILL_PROCESS
#define RET_DENY (SECCOMP_RET_ERRNO | EPERM)

enum rule {
    ALLOW,     /* anybody */
    NO_EXEC,   /* anybody, without PROT_EXEC in the third argument */
    DENY,      /* EPERM */
    GATE_DENY, /* the zygote through the gate and the compiler; EPERM for a child */
    GATE_KILL, /* the zygote through the gate; kills a child and a compiler */
    GATE_ONE,  /* the same, and the first argument must be above 0: a process, not a group */
};

struct call {
    const char *name;
    int number;
    enum rule rule;
};

#define CALL(name, rule) {#name, __NR_##name, rule}

/* The most frequent first: the filter compares in this order. Numbers that an architecture does
 * not have (aarch64 has no open, fork, poll, ...) are left out there. */
static const struct call calls[] = {
    CALL(brk, ALLOW),
    CALL(mmap, NO_EXEC),
    CALL(mprotect, NO_EXEC),
    CALL(munmap, ALLOW),
    CALL(madvise, ALLOW),
    CALL(clock_gettime, ALLOW),
    CALL(exit_group, ALLOW),
    CALL(exit, ALLOW),
    CALL(gettimeofday, ALLOW),
    CALL(futex, ALLOW),
    CALL(sched_yield, ALLOW),
    CALL(rt_sigaction, ALLOW),
    CALL(rt_sigprocmask, ALLOW),
    CALL(rt_sigreturn, ALLOW),
    CALL(sigaltstack, ALLOW),
    CALL(restart_syscall, ALLOW),
    /* the zygote's own */
    CALL(clone, GATE_KILL),
    CALL(wait4, GATE_KILL),
    CALL(kill, GATE_ONE),
    CALL(prctl, GATE_KILL),
    CALL(close_range, GATE_DENY),
    CALL(close, GATE_DENY),
    CALL(prlimit64, GATE_DENY),
    CALL(ppoll, GATE_DENY),
    CALL(read, GATE_DENY),
    CALL(write, GATE_DENY),
    /* a number of a process differs from run to run */
    CALL(getppid, GATE_DENY),
    CALL(getpid, GATE_DENY),
    CALL(gettid, GATE_DENY),
    /* moving memory: realloc does without */
    CALL(mremap, DENY),
    /* files and descriptors */
    CALL(openat, DENY),
    CALL(openat2, DENY),
    CALL(lseek, DENY),
    CALL(fstat, DENY),
    CALL(statx, DENY),
    CALL(statfs, DENY),
    CALL(fstatfs, DENY),
    CALL(ioctl, DENY),
    CALL(fcntl, DENY),
    CALL(flock, DENY),
    CALL(dup, DENY),
    CALL(dup3, DENY),
    CALL(pipe2, DENY),
    CALL(pread64, DENY),
    CALL(pwrite64, DENY),
    CALL(readv, DENY),
    CALL(writev, DENY),
    CALL(preadv, DENY),
    CALL(pwritev, DENY),
    CALL(sendfile, DENY),
    CALL(splice, DENY),
    CALL(copy_file_range, DENY),
    CALL(fsync, DENY),
    CALL(fdatasync, DENY),
    CALL(truncate, DENY),
    CALL(ftruncate, DENY),
    CALL(fallocate, DENY),
    CALL(getdents64, DENY),
    CALL(getcwd, DENY),
    CALL(chdir, DENY),
    CALL(fchdir, DENY),
    CALL(mkdirat, DENY),
    CALL(mknodat, DENY),
    CALL(unlinkat, DENY),
    CALL(renameat2, DENY),
    CALL(linkat, DENY),
    CALL(symlinkat, DENY),
    CALL(readlinkat, DENY),
    CALL(faccessat, DENY),
    CALL(faccessat2, DENY),
    CALL(fchmod, DENY),
    CALL(fchmodat, DENY),
    CALL(fchown, DENY),
    CALL(fchownat, DENY),
    CALL(utimensat, DENY),
    CALL(umask, DENY),
    CALL(pselect6, DENY),
    CALL(epoll_create1, DENY),
    CALL(memfd_create, DENY),
    /* information, sleeping, randomness */
    CALL(uname, DENY),
    CALL(sysinfo, DENY),
    CALL(times, DENY),
    CALL(getrusage, DENY),
    CALL(sched_getaffinity, DENY),
    CALL(sched_setaffinity, DENY),
    CALL(sched_getparam, DENY),
    CALL(sched_getscheduler, DENY),
    CALL(getpriority, DENY),
    CALL(setpriority, DENY),
    CALL(getuid, DENY),
    CALL(geteuid, DENY),
    CALL(getgid, DENY),
    CALL(getegid, DENY),
    CALL(getresuid, DENY),
    CALL(getresgid, DENY),
    CALL(getgroups, DENY),
    CALL(getpgid, DENY),
    CALL(getsid, DENY),
    CALL(clock_getres, DENY),
    CALL(clock_nanosleep, DENY),
    CALL(nanosleep, DENY),
    CALL(getrandom, DENY),
    CALL(membarrier, DENY),
    CALL(getcpu, DENY),
#if defined(__x86_64__)
    CALL(time, ALLOW),
    CALL(open, DENY),
    CALL(creat, DENY),
    CALL(stat, DENY),
    CALL(lstat, DENY),
    CALL(newfstatat, DENY),
    CALL(access, DENY),
    CALL(readlink, DENY),
    CALL(getdents, DENY),
    CALL(dup2, DENY),
    CALL(pipe, DENY),
    CALL(poll, DENY),
    CALL(select, DENY),
    CALL(mkdir, DENY),
    CALL(rmdir, DENY),
    CALL(mknod, DENY),
    CALL(unlink, DENY),
    CALL(rename, DENY),
    CALL(renameat, DENY),
    CALL(link, DENY),
    CALL(symlink, DENY),
    CALL(chmod, DENY),
    CALL(chown, DENY),
    CALL(lchown, DENY),
    CALL(utime, DENY),
    CALL(utimes, DENY),
    CALL(futimesat, DENY),
    CALL(getpgrp, DENY),
    CALL(getrlimit, DENY),
    CALL(setrlimit, DENY),
    CALL(pause, DENY),
#endif
};

#define CALL_COUNT (sizeof calls / sizeof *calls)
/* Per call at most a comparison, four instructions for an argument, and six of a gate. */
#define PROGRAM_MAX (12 * CALL_COUNT + 16)

struct program {
    struct sock_filter code[PROGRAM_MAX];
    size_t length;
};

static void emit(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
    p->code[p->length++] = (struct sock_filter){code, jt, jf, k};
}

static void load(struct program *p, size_t offset)
{
    emit(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void give(struct program *p, uint32_t action) { emit(p, BPF_RET | BPF_K, action, 0, 0); }

static void emit_gate(struct program *p, uint32_t otherwise)
{
    uint64_t ip = sbx_gate_ip();
    size_t at = offsetof(struct seccomp_data, instruction_pointer);
    load(p, at);
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)ip, 0, 3);
    load(p, at + 4);
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(ip >> 32), 0, 1);
    give(p, SECCOMP_RET_ALLOW);
    give(p, otherwise);
}

static void emit_call(struct program *p, const struct call *call, enum sbx_role role)
{
    size_t jump = p->length;
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call->number, 0, 0);
    switch (call->rule) {
    case ALLOW:
        give(p, SECCOMP_RET_ALLOW);
        break;
    case NO_EXEC:
        load(p, offsetof(struct seccomp_data, args[2]));
        emit(p, BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1);
        give(p, RET_KILL);
        give(p, SECCOMP_RET_ALLOW);
        break;
    case DENY:
        give(p, RET_DENY);
        break;
    case GATE_DENY:
        if (role == SBX_ZYGOTE)
            emit_gate(p, RET_DENY);
        else
            give(p, SECCOMP_RET_ALLOW);
        break;
    case GATE_ONE:
        load(p, offsetof(struct seccomp_data, args[0]));
        emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
        emit(p, BPF_JMP | BPF_JSET | BPF_K, 0x80000000u, 0, 1);
        give(p, RET_KILL);
        /* fall through */
    case GATE_KILL:
        if (role == SBX_ZYGOTE)
            emit_gate(p, RET_KILL);
        else
            give(p, RET_KILL);
        break;
    }
    p->code[jump].jf = (uint8_t)(p->length - jump - 1);
}

int sbx_seccomp_install(enum sbx_role role)
{
    struct program p = {.length = 0};

    load(&p, offsetof(struct seccomp_data, arch));
    emit(&p, BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    give(&p, RET_KILL);
    load(&p, offsetof(struct seccomp_data, nr));
#ifdef X32_BIT
    emit(&p, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    give(&p, RET_KILL);
#endif
    for (size_t i = 0; i < CALL_COUNT; i++)
        emit_call(&p, &calls[i], role);
    give(&p, RET_KILL);

    struct sock_fprog filter = {.len = (unsigned short)p.length, .filter = p.code};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
}

PyObject *sbx_seccomp_table(void)
{
    static const char *const child_gets[] = {
        [ALLOW] = "allow", [NO_EXEC] = "allow", [DENY] = "deny",
        [GATE_DENY] = "deny", [GATE_KILL] = "kill", [GATE_ONE] = "kill",
    };
    PyObject *rows = PyList_New(0);
    if (rows == NULL)
        return NULL;
    for (size_t i = 0; i < CALL_COUNT; i++) {
        PyObject *row = Py_BuildValue("(sis)", calls[i].name, calls[i].number,
                                      child_gets[calls[i].rule]);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_XDECREF(row);
            Py_DECREF(rows);
            return NULL;
        }
        Py_DECREF(row);
    }
    return rows;
}
