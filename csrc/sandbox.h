/*
 * The sandbox: theory of operation.
 *
 * Processes
 *   client     the trainer, or whoever imports azr.sandbox. Many threads, a GPU, secrets. It never
 *              forks: it execs the others with a fresh environment and one socket each.
 *   compiler   one small interpreter. Source text in; marshalled code, or a verdict, out. It never
 *              forks, and it runs none of the code that it compiles.
 *   zygote     a small interpreter per hash seed. It imports the allowed modules, lays out its
 *              memory so that forks are cheap (residence.c), locks itself down for good (lockdown.c),
 *              and then forks one child per program (zygote.c). One thread.
 *   child      runs one program on its inputs (runner.c) and dies. It has no file descriptor.
 *
 * Channels
 *   client <-> zygote, client <-> compiler   a stream socket with length-prefixed frames.
 *   zygote <-> child                         a slot: shared memory that only these two map. The
 *       zygote writes the run before the fork, the child appends results, and the zygote reads
 *       them after it has reaped the child: nobody can then change what is being read. Before the
 *       next program the slot is wiped, wherever in it the child may have written.
 *   zygotes together                         an eventfd holding `workers` tokens: a token is taken
 *       before a fork and put back after the reap, so that all zygotes together run no more
 *       children than that. A page shared with the client says how many tokens a zygote holds, so
 *       that the tokens of a zygote that was killed are not lost. In the same page the client says
 *       up to which run it takes back what has not begun, when callers have given up waiting.
 *
 * Trust
 *   Nobody trusts a child: it may hold any native state. A slot is read with every length checked,
 *   and what it says about the program's own results is believed, for a program may return what it
 *   likes. Expected results are never told to it. The client trusts no bytes of values: it decodes
 *   them with bounds (codec.c) and never evals, unpickles or unmarshals. Zygotes trust the client.
 *   A compiler is only as trusted as its parser; it is locked down like a child.
 *
 * The gate
 *   Installing a filter per child costs more than running a small program. So one filter is
 *   installed once per zygote and tells the zygote from its children by the instruction that makes
 *   the call: the few system calls that only the zygote may make (clone, kill, read, ...) are
 *   allowed from one `syscall` instruction alone, which stands on a page of its own (gate.c). The
 *   first thing a child does is to unmap that page. Nothing executable can come to stand there
 *   again: the filter allows no mapping to become executable, nor to be moved.
 *
 * Words: an outcome is data about a program. A failure of the sandbox itself is never an outcome of
 * a program: the process says why in place of its greeting, answers a run with "sandbox_failure"
 * where the host gives it no child, or dies; the client then tries once more.
 */
#ifndef AZR_SANDBOX_H
#define AZR_SANDBOX_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- Outcomes: the one table, mirrored by azr.sandbox.records and checked by a test ---------- */

#define SBX_OUTCOMES(X)                                                                            \
    X(OK, "ok")                                                                                    \
    X(SYNTAX_ERROR, "syntax_error")                                                                \
    X(FORBIDDEN_IMPORT, "forbidden_import")                                                        \
    X(EXCEPTION, "exception")                                                                      \
    X(TIMEOUT_CPU, "timeout_cpu")                                                                  \
    X(TIMEOUT_WALL, "timeout_wall")                                                                \
    X(MEMORY, "memory")                                                                            \
    X(TOO_LARGE, "too_large")                                                                      \
    X(UNSUPPORTED_VALUE, "unsupported_value")                                                      \
    X(NONDETERMINISTIC, "nondeterministic")                                                        \
    X(CRASH, "crash")                                                                              \
    X(NO_RESULT, "no_result")                                                                      \
    X(VIOLATION, "violation")                                                                      \
    X(SANDBOX_FAILURE, "sandbox_failure")

enum sbx_outcome {
#define SBX_ENUM(name, text) SBX_##name,
    SBX_OUTCOMES(SBX_ENUM)
#undef SBX_ENUM
    SBX_OUTCOME_COUNT
};

/* ---- Limits, as the client passes them to a zygote ------------------------------------------- */

struct sbx_limits {
    int64_t cpu_ns;       /* CPU time of one input; loading the program counts to the first */
    int64_t wall_ns;      /* elapsed time of one input */
    int64_t memory_bytes; /* address space beyond the zygote's own */
    uint32_t run_bytes;   /* code and argument texts of one run */
    uint32_t output_bytes; /* one encoded result */
    uint32_t input_count; /* inputs of one run */
    uint32_t depth;       /* nesting of a value, and of an argument text */
    uint32_t node_count;  /* values inside one value */
};

/* ---- Frames on the socket, little-endian as both supported architectures are ----------------- */

/* One program on inputs of its own, for one child. */
struct sbx_run {
    uint32_t frame_bytes; /* this header, the code and the inputs, padded to 8 */
    uint32_t id;
    uint32_t code_bytes;
    uint32_t input_count; /* each input: uint32_t bytes, then the text */
    uint32_t shake_seed;  /* not 0: allocate in an order drawn from this seed */
    uint32_t reserved;
};

struct sbx_report {
    uint32_t frame_bytes; /* this header and the entries */
    uint32_t id;
    uint32_t ended;     /* an outcome: OK, or why the child ended before its last input was done */
    int32_t signal;     /* that killed the child, 0 if none */
    uint32_t committed; /* inputs that have an entry */
    uint32_t faults;    /* minor page faults of the child */
    int64_t cpu_ns;
    int64_t wall_ns;
};

/* In an entry's outcome: by now the program has done what may make its results depend on more than
 * its input. */
#define SBX_MAY_DIFFER 0x10000u

/* One per input in a slot and in a report, 8-byte aligned; the payload follows. */
struct sbx_entry {
    uint32_t outcome; /* and SBX_MAY_DIFFER */
    uint32_t payload_bytes; /* a canonical value, or the name of an exception or a type */
    int64_t cpu_ns;         /* of this input alone; 0 where there is one input */
};

#define SBX_ALIGN8(n) (((n) + 7u) & ~(size_t)7u)

/* ---- Slots ------------------------------------------------------------------------------------ */

struct sbx_slot {
    /* Written by the zygote before the fork. */
    struct sbx_run run;
    uint32_t output_offset; /* from the start of the slot */
    uint32_t output_capacity;
    /* Written by the child. */
    uint32_t committed;
    uint32_t output_used;
    int64_t input_start_cpu_ns;  /* CPU clock of the child when the current input began */
    int64_t input_start_wall_ns; /* CLOCK_MONOTONIC at that time */
    unsigned char body[];        /* the code, then the inputs; then the output */
};

/* ---- codec.c: canonical bytes of plain values ------------------------------------------------- */

struct sbx_writer {
    unsigned char *start, *at, *end;
    uint32_t depth_left, nodes_left;
    const char *unsupported; /* what made the value unsupported: a type's name */
};

/* OK, TOO_LARGE, UNSUPPORTED_VALUE, or MEMORY; no Python exception is left set. */
enum sbx_outcome sbx_encode(PyObject *value, struct sbx_writer *writer);

/* What one decoded value may take. */
struct sbx_bounds {
    uint32_t depth, nodes;
    size_t memory_bytes; /* of its objects */
    size_t probes;       /* places looked at while dicts and sets are filled */
};

/* A new reference, or NULL: with ValueError for bytes that no sbx_encode has written, OverflowError
 * for those of a value over a bound, before it takes what the bound forbids. */
PyObject *sbx_decode(const unsigned char *bytes, size_t byte_count, const struct sbx_bounds *bounds);

/* ---- literal.c: text of an argument list ------------------------------------------------------ */

/* 0 with a new tuple and a new dict (or NULL for no keyword); -1 where the text is not a list of
 * literals (SyntaxError set) or memory ran out (MemoryError set). */
int sbx_parse_args(const char *text, size_t byte_count, uint32_t depth, PyObject **args,
                   PyObject **kwargs);

/* ---- gate.c: the system calls that only a zygote may make ------------------------------------- */

long sbx_gate(long number, long a, long b, long c, long d, long e, long f);
/* The address that the kernel reports for a call through the gate. */
uint64_t sbx_gate_ip(void);
/* Takes the gate from the calling process for good; -1 with errno. */
int sbx_gate_unmap(void);

/* ---- lockdown.c: what a process gives up for good --------------------------------------------- */

enum sbx_role { SBX_ZYGOTE, SBX_COMPILER };

struct sbx_layers {
    int32_t rlimits;          /* 1 if all of the table are set */
    int32_t no_new_privs;
    int32_t seccomp;
    int32_t landlock;         /* ABI, 0 if none */
    int32_t uid;              /* that was changed to, 0 if none */
    int32_t capabilities;     /* 1 if none is left */
    int32_t namespaces;       /* CLONE_NEW* flags of those entered */
    int32_t undumpable;
    int32_t oom_victim;       /* 1 if the kernel takes this process first */
};

/* Returns 0, or -1 with OSError if the process must not go on. */
int sbx_lock_down(enum sbx_role role, int64_t memory_bytes, struct sbx_layers *layers);
/* Dies with its parent; -1 with errno, ESRCH if the parent is not `parent` any more. */
int sbx_die_with(pid_t parent);

/* ---- seccomp.c -------------------------------------------------------------------------------- */

/* 0, or -1 with errno. */
int sbx_seccomp_install(enum sbx_role role);
/* The table as a list of (name, number, what a child gets: "allow", "deny", "kill"). */
PyObject *sbx_seccomp_table(void);

/* ---- runner.c: inside the child ---------------------------------------------------------------- */

/* What a zygote prepares once, so that a child need not. Borrowed by every child. */
struct sbx_runtime {
    PyObject *builtins;   /* dict of the program's builtins */
    PyObject *exceptions; /* dict: exception class -> its name */
    PyObject *module;     /* that sys.modules has by the name of programs */
    PyObject *globals;    /* dict that a program's own is a copy of */
    struct sbx_limits limits;
};

int sbx_runtime_set(PyObject *builtins, PyObject *exceptions, const struct sbx_limits *limits);
/* Makes module and globals anew, so that they lie with what is allocated now. */
int sbx_runtime_renew(void);
struct sbx_runtime *sbx_runtime_get(void);
/* Runs the slot's program; every input that ends has an entry afterwards. */
void sbx_run_program(struct sbx_slot *slot, const struct sbx_runtime *runtime);

/* ---- residence.c -------------------------------------------------------------------------------- */

/* Takes the free memory between what is in use for good, so that what is allocated from now on lies
 * together and a child writes to fewer pages; joins the mappings of each library; and unmaps the
 * pages of files, for what comes to touch again. */
void sbx_tidy(void);
/* Lays out what is mapped now so that forks are cheap. Addresses and bytes stay as they are. */
void sbx_settle(void);

/* ---- zygote.c ---------------------------------------------------------------------------------- */

struct sbx_zygote_config {
    int socket_fd;
    int tokens_fd;      /* eventfd in semaphore mode */
    int held_fd;        /* a page with two uint32_t per zygote: tokens it holds, and, from the
                         * middle on, the last run that is recalled */
    uint32_t held_index;
    uint32_t slot_count;
    struct sbx_limits limits;
};

/* Maps what serving needs; call before the lockdown. NULL with OSError. */
struct sbx_zygote *sbx_zygote_open(const struct sbx_zygote_config *config);
/* Sends `hello`, then serves. Returns 0 when the client has closed the socket; -1 with OSError. */
int sbx_zygote_serve(struct sbx_zygote *zygote, const struct sbx_runtime *runtime,
                     const void *hello, size_t hello_bytes);
/* The address space of a zygote that its children do not have. */
int64_t sbx_zygote_own_bytes(const struct sbx_zygote *zygote);
/* Forks, exits and reaps children that do nothing: the floor of the benches. */
int sbx_fork_floor(uint32_t count, int64_t *cpu_ns, uint32_t *faults);

/* ---- identity.c: what no look at the code can tell --------------------------------------------- */

extern int sbx_may_differ; /* set in the child */

/* Watches the default reprs of all classes there are, and the making of classes; -1 with an
 * exception. */
int sbx_watch_identity(void);

/* ---- memory.c ---------------------------------------------------------------------------------- */

extern bool sbx_memory_ran_out;
/* Has the allocators note when there is no memory. */
void sbx_watch_memory(void);

/* ---- imports.c: what a program reaches for and does not get ------------------------------------ */

enum { SBX_REFUSED_BYTES = 128 };
/* The first such thing since it was last cleared: a module, "open", an encoding, ... In the child. */
extern char sbx_refused[SBX_REFUSED_BYTES];
void sbx_refuse(PyObject *name);
/* A callable that does what `call` does, and first refuses by this name; nothing shows `call`. */
PyObject *sbx_guard(PyObject *name, PyObject *call);
/* Between two inputs: forgets what the library's caches may hold of the one before. */
void sbx_forget_caches(void);

/* Modules by name: those that a program may import, those that the interpreter loads for itself, and
 * all that the zygote has loaded; and a function for those whose caches have to be emptied. */
int sbx_imports_set(PyObject *allowed, PyObject *internal, PyObject *loaded, PyObject *caches,
                    PyObject *original);
PyObject *sbx_import(PyObject *self, PyObject *args, PyObject *kwargs);

/* ---- compiler.c --------------------------------------------------------------------------------- */

struct sbx_source {
    uint32_t frame_bytes; /* this header and the source, padded to 8 */
    uint32_t id;
    uint32_t source_bytes;
    uint32_t reserved;
};

/* It may see hash order or identity. */
#define SBX_RISKY 1u
/* One call may leave something to the next. */
#define SBX_KEEPS 2u

struct sbx_compiled {
    uint32_t frame_bytes; /* this header and the payload, padded to 8 */
    uint32_t id;
    uint32_t outcome; /* OK, SYNTAX_ERROR, FORBIDDEN_IMPORT, TOO_LARGE or MEMORY */
    uint32_t traits;  /* of the program, as far as its code tells */
    uint32_t payload_bytes; /* marshalled code, or a module's name */
    uint32_t reserved;
};

/* By what a program's code is judged; modules.py has the contents. */
struct sbx_scan_lists {
    PyObject *allowed, *plain_modules, *stateless_modules; /* sets of modules' names */
    PyObject *plain_builtins, *plain_attributes;           /* sets */
    PyObject *builtins;                                    /* dict: all there are */
    const unsigned char *meanings;                         /* 256, by opcode: see compiler.c */
};

/* Serves until the client closes the socket: 0, or -1 with an exception. */
int sbx_compiler_serve(int socket_fd, uint32_t source_bytes_max, uint32_t code_bytes_max,
                       const struct sbx_scan_lists *lists);

#endif
