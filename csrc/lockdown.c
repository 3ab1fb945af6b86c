/* What a zygote and a compiler give up before they see anything that a model wrote.
 *
 * Every layer is tried, in the order in which one allows the next, and what took hold is reported.
 * Which of them must hold is the client's decision.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif

/* Users of zygotes: far from those that accounts and containers use. */
#define FIRST_UID 1879048192u
#define UID_COUNT 1048576u

int sbx_die_with(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return -1;
    if (getppid() != parent) { /* it died before the call above */
        errno = ESRCH;
        return -1;
    }
    return 0;
}

static int become_oom_victim(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int done = write(fd, "1000", 4) == 4;
    close(fd);
    return done;
}

/* Of the namespaces that need no first process of their own. Those that a container forbids are
 * tried one by one, so that one refusal costs no other. */
static int enter_namespaces(void)
{
    static const int wanted[] = {CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWNS,
                                 CLONE_NEWCGROUP};
    int entered = 0;

    /* An ordinary user may do so only inside a user namespace of its own. */
    if (geteuid() != 0 && unshare(CLONE_NEWUSER) == 0)
        entered |= CLONE_NEWUSER;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (unshare(wanted[i]) == 0)
            entered |= wanted[i];
    return entered;
}

/* The user changed to, 0 where that is not permitted. Capabilities go with root. */
static int drop_user(void)
{
    if (geteuid() != 0)
        return 0;
    uid_t candidates[] = {FIRST_UID + (uid_t)getpid() % UID_COUNT, 65534};
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        uid_t id = candidates[i];
        if (setgroups(0, NULL) == 0 && setresgid(id, id, id) == 0 && setresuid(id, id, id) == 0)
            return (int)id;
    }
    return 0;
}

static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
    memset(none, 0, sizeof none);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); /* also absent before Linux 4.3 */
    return syscall(SYS_capset, &header, none) == 0;
}

/* The address space in use, 0 if it cannot be told. */
static rlim_t own_address_space_bytes(void)
{
    char text[64];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t byte_count = read(fd, text, sizeof text - 1);
    close(fd);
    if (byte_count <= 0)
        return 0;
    text[byte_count] = '\0';
    return (rlim_t)strtoul(text, NULL, 10) * (rlim_t)sysconf(_SC_PAGESIZE);
}

static int set_rlimits(int64_t memory_bytes, bool own_user)
{
    rlim_t in_use = own_address_space_bytes();
    const struct {
        int resource;
        rlim_t value;
    } table[] = {
        {RLIMIT_AS, in_use + (rlim_t)memory_bytes},
        {RLIMIT_STACK, 8u << 20},
        {RLIMIT_CORE, 0},
        {RLIMIT_FSIZE, 0},
        {RLIMIT_NOFILE, 16},
        {RLIMIT_MEMLOCK, 0},
        {RLIMIT_MSGQUEUE, 0},
        {RLIMIT_SIGPENDING, 64},
        {RLIMIT_NICE, 0},
        {RLIMIT_RTPRIO, 0},
        /* Counted per user: it would stop the zygote where other processes share its user. */
        {RLIMIT_NPROC, own_user ? 4096 : RLIM_INFINITY},
    };
    int held = in_use > 0;

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct rlimit limit;
        if (table[i].value == RLIM_INFINITY)
            continue;
        if (getrlimit(table[i].resource, &limit) < 0)
            return 0;
        /* A limit may stand below ours already. */
        if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > table[i].value)
            limit.rlim_max = table[i].value;
        limit.rlim_cur = limit.rlim_max;
        held &= setrlimit(table[i].resource, &limit) == 0;
    }
    return held;
}

/* The ABI in force, 0 if none. No rule is added: everything that Landlock knows is refused. */
static int restrict_by_landlock(void)
{
#ifdef __NR_landlock_create_ruleset
    /* Laid out as the kernel has it since ABI 6; an older one takes the part that it knows. */
    struct {
        uint64_t handled_access_fs;
        uint64_t handled_access_net;
        uint64_t scoped;
    } rules = {0, 0, 0};
    size_t rules_bytes = sizeof rules.handled_access_fs;
    long abi = syscall(__NR_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 1)
        return 0;

    int fs_rights = abi >= 5 ? 16 : abi >= 3 ? 15 : abi >= 2 ? 14 : 13;
    rules.handled_access_fs = (1ull << fs_rights) - 1;
    if (abi >= 4) {
        rules.handled_access_net = 3; /* TCP bind and connect */
        rules_bytes = offsetof(__typeof__(rules), scoped);
    }
    if (abi >= 6) {
        rules.scoped = 3; /* abstract unix sockets and signals */
        rules_bytes = sizeof rules;
    }
    long fd = syscall(__NR_landlock_create_ruleset, &rules, rules_bytes, 0);
    if (fd < 0)
        return 0;
    long failed = syscall(__NR_landlock_restrict_self, fd, 0);
    close((int)fd);
    return failed ? 0 : (int)abi;
#else
    return 0;
#endif
}

int sbx_lock_down(enum sbx_role role, int64_t memory_bytes, struct sbx_layers *layers)
{
    pid_t parent = getppid();

    memset(layers, 0, sizeof *layers);
    layers->oom_victim = become_oom_victim();
    layers->namespaces = enter_namespaces();
    layers->uid = drop_user();
    layers->capabilities = drop_capabilities();
    layers->rlimits = set_rlimits(memory_bytes, layers->uid != 0);
    layers->undumpable = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
    layers->no_new_privs = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    layers->landlock = restrict_by_landlock();
    if (sbx_die_with(parent) < 0) { /* a change of user has cleared it */
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    layers->seccomp = sbx_seccomp_install(role) == 0;
    return 0;
}
