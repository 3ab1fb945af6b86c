/* azr._sandbox: what Python sees. The client uses decode_entry, parse_args, encode, decode and
 * OUTCOMES; the rest is called by zygotes and compilers on their own processes. */
#include "sandbox.h"

#include <marshal.h>
#include <stdlib.h>
#include <string.h>

/* ---- Values ----------------------------------------------------------------------------------- */

/* What a value of so many bytes may take. The factors let through what programs return: a list of
 * thousands of small dicts is the largest for its bytes. */
static struct sbx_bounds bounds_of(size_t output_bytes, unsigned int depth, unsigned int nodes)
{
    return (struct sbx_bounds){depth, nodes, 14 * output_bytes, 4 * output_bytes};
}

static PyObject *py_decode(PyObject *self, PyObject *args)
{
    Py_buffer bytes;
    unsigned int output_bytes, depth, nodes;
    struct sbx_bounds bounds;
    PyObject *value;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*III:decode", &bytes, &output_bytes, &depth, &nodes))
        return NULL;
    bounds = bounds_of(output_bytes, depth, nodes);
    value = sbx_decode(bytes.buf, (size_t)bytes.len, &bounds);
    PyBuffer_Release(&bytes);
    return value;
}

static PyObject *py_encode(PyObject *self, PyObject *args)
{
    PyObject *value, *bytes, *result = NULL;
    unsigned int byte_count, depth, node_count;
    struct sbx_writer w;
    enum sbx_outcome outcome;

    (void)self;
    if (!PyArg_ParseTuple(args, "OIII:encode", &value, &byte_count, &depth, &node_count))
        return NULL;
    if ((bytes = PyBytes_FromStringAndSize(NULL, byte_count)) == NULL)
        return NULL;
    w.start = w.at = (unsigned char *)PyBytes_AS_STRING(bytes);
    w.end = w.start + byte_count;
    w.depth_left = depth;
    w.nodes_left = node_count;
    w.unsupported = NULL;
    outcome = sbx_encode(value, &w);
    if (outcome == SBX_OK)
        result = Py_BuildValue("(iy#)", (int)outcome, w.start, (Py_ssize_t)(w.at - w.start));
    else
        result = Py_BuildValue("(iy)", (int)outcome, w.unsupported ? w.unsupported : "");
    Py_DECREF(bytes);
    return result;
}

static PyObject *py_parse_args(PyObject *self, PyObject *args)
{
    const char *text;
    Py_ssize_t byte_count;
    unsigned int depth;
    PyObject *positional, *keywords;

    (void)self;
    if (!PyArg_ParseTuple(args, "s#I:parse_args", &text, &byte_count, &depth))
        return NULL;
    if (sbx_parse_args(text, (size_t)byte_count, depth, &positional, &keywords) < 0)
        return NULL;
    if (keywords == NULL && (keywords = PyDict_New()) == NULL) {
        Py_DECREF(positional);
        return NULL;
    }
    return Py_BuildValue("(NN)", positional, keywords);
}

/* What a program can cause by itself; anything else in an entry is forged. */
static bool is_entry_outcome(uint32_t outcome)
{
    outcome &= ~SBX_MAY_DIFFER;
    return outcome == SBX_OK || outcome == SBX_SYNTAX_ERROR || outcome == SBX_FORBIDDEN_IMPORT ||
           outcome == SBX_EXCEPTION || outcome == SBX_MEMORY || outcome == SBX_TOO_LARGE ||
           outcome == SBX_UNSUPPORTED_VALUE;
}

/* Names of classes, types and modules are shorter; a forged one is cut. */
enum { ERROR_CHARS_MAX = 200 };

static PyObject *error_text(const unsigned char *bytes, size_t byte_count)
{
    if (byte_count > ERROR_CHARS_MAX)
        byte_count = ERROR_CHARS_MAX;
    return PyUnicode_DecodeUTF8((const char *)bytes, (Py_ssize_t)byte_count, "replace");
}

/* The value of an entry, or why there is none; *outcome becomes TOO_LARGE where it is over a bound. */
static PyObject *entry_value(uint32_t *outcome, const unsigned char *payload, size_t byte_count,
                             const struct sbx_bounds *bounds)
{
    PyObject *value, *type, *error, *traceback;

    if (*outcome != SBX_OK)
        return error_text(payload, byte_count);
    value = sbx_decode(payload, byte_count, bounds);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Fetch(&type, &error, &traceback);
        value = error ? PyObject_Str(error) : NULL;
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
        *outcome = SBX_TOO_LARGE;
    }
    return value;
}

/* One entry at a time, so that no other thread waits for a whole report. */
static PyObject *py_decode_entry(PyObject *self, PyObject *args)
{
    Py_buffer report;
    Py_ssize_t offset, left;
    unsigned int output_bytes, depth, nodes;
    struct sbx_bounds bounds;
    struct sbx_entry entry;
    uint32_t outcome;
    const unsigned char *at;
    PyObject *value = NULL, *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*nIII:decode_entry", &report, &offset, &output_bytes, &depth,
                          &nodes))
        return NULL;
    at = (const unsigned char *)report.buf + offset;
    left = report.len - offset - (Py_ssize_t)sizeof entry;
    if (offset < 0 || left < 0)
        goto forged;
    memcpy(&entry, at, sizeof entry);
    at += sizeof entry;
    if (entry.payload_bytes > output_bytes || entry.payload_bytes > (size_t)left ||
        !is_entry_outcome(entry.outcome))
        goto forged;
    bounds = bounds_of(output_bytes, depth, nodes);
    outcome = entry.outcome & ~SBX_MAY_DIFFER;
    if ((value = entry_value(&outcome, at, entry.payload_bytes, &bounds)) == NULL)
        goto done;
    offset += (Py_ssize_t)SBX_ALIGN8(sizeof entry + entry.payload_bytes);
    result = Py_BuildValue("(Iy#OLOn)", outcome, at,
                           outcome == SBX_OK ? (Py_ssize_t)entry.payload_bytes : 0, value,
                           (long long)entry.cpu_ns,
                           entry.outcome & SBX_MAY_DIFFER ? Py_True : Py_False, offset);
    goto done;
forged:
    PyErr_SetString(PyExc_ValueError, "not the bytes of a report");
done:
    Py_XDECREF(value);
    PyBuffer_Release(&report);
    return result;
}

/* ---- Processes -------------------------------------------------------------------------------- */

static PyObject *py_die_with(PyObject *self, PyObject *args)
{
    int parent;
    (void)self;
    if (!PyArg_ParseTuple(args, "i:die_with", &parent))
        return NULL;
    if (sbx_die_with(parent) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *py_lock_down(PyObject *self, PyObject *args)
{
    struct sbx_layers layers;
    long long memory_bytes;
    int is_zygote;

    (void)self;
    if (!PyArg_ParseTuple(args, "pL:lock_down", &is_zygote, &memory_bytes))
        return NULL;
    if (sbx_lock_down(is_zygote ? SBX_ZYGOTE : SBX_COMPILER, memory_bytes, &layers) < 0)
        return NULL;
    return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "rlimits", layers.rlimits,
                         "no_new_privs", layers.no_new_privs, "seccomp", layers.seccomp,
                         "landlock", layers.landlock, "uid", layers.uid, "capabilities",
                         layers.capabilities, "namespaces", layers.namespaces, "undumpable",
                         layers.undumpable, "oom_victim", layers.oom_victim);
}

static int parse_limits(PyObject *args, struct sbx_limits *limits)
{
    long long cpu_ns, wall_ns, memory_bytes;
    if (!PyArg_ParseTuple(args, "LLLIIIII:limits", &cpu_ns, &wall_ns, &memory_bytes,
                          &limits->run_bytes, &limits->output_bytes, &limits->input_count,
                          &limits->depth, &limits->node_count))
        return -1;
    limits->cpu_ns = cpu_ns;
    limits->wall_ns = wall_ns;
    limits->memory_bytes = memory_bytes;
    return 0;
}

static PyObject *py_prepare(PyObject *self, PyObject *args)
{
    PyObject *builtins, *exceptions, *allowed, *internal, *loaded, *caches, *original, *limit_values;
    struct sbx_limits limits;

    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!OOO!:prepare", &PyDict_Type, &builtins, &PyDict_Type,
                          &exceptions, &PyDict_Type, &allowed, &PyDict_Type, &internal,
                          &PyDict_Type, &loaded, &caches, &original, &PyTuple_Type,
                          &limit_values))
        return NULL;
    if (parse_limits(limit_values, &limits) < 0)
        return NULL;
    sbx_imports_set(allowed, internal, loaded, caches, original);
    if (sbx_runtime_set(builtins, exceptions, &limits) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_refuse(PyObject *self, PyObject *name)
{
    (void)self;
    sbx_refuse(name);
    Py_RETURN_NONE;
}

static PyObject *py_guard(PyObject *self, PyObject *args)
{
    PyObject *name, *call;
    (void)self;
    if (!PyArg_ParseTuple(args, "UO:guard", &name, &call))
        return NULL;
    return sbx_guard(name, call);
}

static PyObject *py_watch_memory(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    sbx_watch_memory();
    Py_RETURN_NONE;
}

static PyObject *py_watch_identity(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    if (sbx_watch_identity() < 0)
        return NULL;
    Py_RETURN_NONE;
}

static struct sbx_zygote *zygote; /* a process is one zygote at most */

static PyObject *py_open_zygote(PyObject *self, PyObject *args)
{
    struct sbx_zygote_config config;
    struct sbx_runtime *runtime = sbx_runtime_get();

    (void)self;
    if (!PyArg_ParseTuple(args, "iiiII:open_zygote", &config.socket_fd, &config.tokens_fd,
                          &config.held_fd, &config.held_index, &config.slot_count))
        return NULL;
    if (zygote != NULL || runtime == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "open_zygote comes once, after prepare");
        return NULL;
    }
    config.limits = runtime->limits;
    if ((zygote = sbx_zygote_open(&config)) == NULL)
        return NULL;
    return PyLong_FromLongLong(sbx_zygote_own_bytes(zygote));
}

static PyObject *py_serve(PyObject *self, PyObject *args)
{
    const char *hello;
    Py_ssize_t byte_count;

    (void)self;
    if (!PyArg_ParseTuple(args, "y#:serve", &hello, &byte_count))
        return NULL;
    if (zygote == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this process is not a zygote");
        return NULL;
    }
    if (sbx_zygote_serve(zygote, sbx_runtime_get(), hello, (size_t)byte_count) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_tidy(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    sbx_tidy();
    /* Every child writes to it. */
    if (sbx_runtime_renew() < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_settle(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    sbx_settle();
    Py_RETURN_NONE;
}

/* Runs a program of the zygote's own in this very process, on the way that children take. */
static PyObject *py_rehearse(PyObject *self, PyObject *args)
{
    enum { ROOM_BYTES = 65536 };
    PyObject *code, *bytes = NULL;
    const char *text;
    Py_ssize_t text_bytes;
    uint32_t size;
    struct sbx_slot *slot = NULL;
    unsigned char *input;
    bool fits;

    (void)self;
    if (!PyArg_ParseTuple(args, "Os#:rehearse", &code, &text, &text_bytes))
        return NULL;
    if ((bytes = PyMarshal_WriteObjectToString(code, Py_MARSHAL_VERSION)) == NULL)
        return NULL;
    size = (uint32_t)text_bytes;
    fits = sizeof *slot + (size_t)PyBytes_GET_SIZE(bytes) + size + 64 < ROOM_BYTES / 2;
    if (!fits || sbx_runtime_get() == NULL || (slot = calloc(1, ROOM_BYTES)) == NULL) {
        Py_DECREF(bytes);
        PyErr_SetString(PyExc_ValueError, "no room, or not prepared");
        return NULL;
    }
    slot->run.code_bytes = (uint32_t)PyBytes_GET_SIZE(bytes);
    slot->run.input_count = 1;
    slot->output_offset = ROOM_BYTES / 2;
    slot->output_capacity = ROOM_BYTES / 2;
    memcpy(slot->body, PyBytes_AS_STRING(bytes), slot->run.code_bytes);
    input = slot->body + slot->run.code_bytes;
    memcpy(input, &size, sizeof size);
    memcpy(input + sizeof size, text, size);
    sbx_run_program(slot, sbx_runtime_get());
    Py_DECREF(bytes);
    size = ((struct sbx_entry *)((unsigned char *)slot + slot->output_offset))->outcome;
    sbx_may_differ = 0;
    free(slot);
    return PyLong_FromUnsignedLong(size);
}

static PyObject *py_fork_floor(PyObject *self, PyObject *args)
{
    unsigned int count;
    int64_t cpu_ns;
    uint32_t faults;

    (void)self;
    if (!PyArg_ParseTuple(args, "I:fork_floor", &count))
        return NULL;
    if (sbx_fork_floor(count, &cpu_ns, &faults) < 0)
        return NULL;
    return Py_BuildValue("(LI)", (long long)cpu_ns, faults);
}

static PyObject *py_serve_compiler(PyObject *self, PyObject *args)
{
    int fd;
    unsigned int source_bytes_max, code_bytes_max;
    Py_ssize_t meanings;
    struct sbx_scan_lists lists;

    (void)self;
    if (!PyArg_ParseTuple(args, "iIIO!O!O!O!O!O!y#:serve_compiler", &fd, &source_bytes_max,
                          &code_bytes_max, &PySet_Type, &lists.allowed, &PySet_Type, &lists.plain_modules,
                          &PySet_Type, &lists.stateless_modules, &PySet_Type,
                          &lists.plain_builtins, &PySet_Type, &lists.plain_attributes,
                          &PyDict_Type, &lists.builtins, &lists.meanings, &meanings))
        return NULL;
    if (meanings != 256) {
        PyErr_SetString(PyExc_ValueError, "one meaning for each of 256 opcodes");
        return NULL;
    }
    if (sbx_compiler_serve(fd, source_bytes_max, code_bytes_max, &lists) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_syscalls(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return sbx_seccomp_table();
}

/* ---- The module ------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"decode", py_decode, METH_VARARGS,
     "decode(bytes, output_bytes, depth, nodes) -> value of canonical bytes; ValueError for others, "
     "OverflowError for one over a bound"},
    {"encode", py_encode, METH_VARARGS,
     "encode(value, bytes, depth, nodes) -> (outcome, canonical bytes or a type's name)"},
    {"parse_args", py_parse_args, METH_VARARGS,
     "parse_args(text, depth) -> (args, kwargs) of literals; SyntaxError for anything else"},
    {"decode_entry", py_decode_entry, METH_VARARGS,
     "decode_entry(report, offset, output_bytes, depth, nodes) -> (outcome, payload, value or text, "
     "cpu_ns, whether it may differ, offset of the next); ValueError for a forged one"},
    {"die_with", py_die_with, METH_VARARGS, "die_with(parent): SIGKILL when the parent dies"},
    {"lock_down", py_lock_down, METH_VARARGS, "lock_down(is_zygote, memory_bytes) -> layers"},
    {"prepare", py_prepare, METH_VARARGS,
     "prepare(builtins, exceptions, allowed, internal, loaded, forget_caches, import, limits)"},
    {"guard", py_guard, METH_VARARGS,
     "guard(name, call) -> what refuses by that name, and then calls"},
    {"watch_memory", py_watch_memory, METH_NOARGS,
     "watch_memory(): note when an allocation fails"},
    {"refuse", py_refuse, METH_O,
     "refuse(name): the outcome of this input is that the program reached for that"},
    {"watch_identity", py_watch_identity, METH_NOARGS,
     "watch_identity(): note when a default repr shows an address"},
    {"open_zygote", py_open_zygote, METH_VARARGS,
     "open_zygote(socket_fd, tokens_fd, held_fd, held_index, slots) -> bytes that no child maps"},
    {"serve", py_serve, METH_VARARGS, "serve(hello) until the client closes the socket"},
    {"tidy", py_tidy, METH_NOARGS, "tidy(): no gaps in the heap, few mappings, no pages of files"},
    {"settle", py_settle, METH_NOARGS, "settle(): make forks cheap, with what is mapped now"},
    {"rehearse", py_rehearse, METH_VARARGS, "rehearse(code, text) -> outcome, run in this process"},
    {"fork_floor", py_fork_floor, METH_VARARGS, "fork_floor(n) -> (cpu_ns, faults) of forking, exiting and reaping n bare children"},
    {"serve_compiler", py_serve_compiler, METH_VARARGS,
     "serve_compiler(fd, source_bytes, code_bytes, allowed, plain_modules, stateless_modules, plain_builtins, "
     "plain_attributes, builtins, meanings)"},
    {"syscalls", py_syscalls, METH_NOARGS, "syscalls() -> [(name, number, what a child gets)]"},
    {"__import__", (PyCFunction)(void (*)(void))sbx_import, METH_VARARGS | METH_KEYWORDS,
     "__import__(name, globals, locals, fromlist, level): the import of programs"},
    {NULL, NULL, 0, NULL},
};

static int add_outcomes(PyObject *module)
{
    static const char *const texts[] = {
#define SBX_TEXT(name, text) text,
        SBX_OUTCOMES(SBX_TEXT)
#undef SBX_TEXT
    };
    PyObject *outcomes = PyTuple_New(SBX_OUTCOME_COUNT);
    int failed;

    if (outcomes == NULL)
        return -1;
    for (int i = 0; i < SBX_OUTCOME_COUNT; i++) {
        PyObject *text = PyUnicode_InternFromString(texts[i]);
        if (text == NULL) {
            Py_DECREF(outcomes);
            return -1;
        }
        PyTuple_SET_ITEM(outcomes, i, text);
    }
    failed = PyModule_AddObjectRef(module, "OUTCOMES", outcomes);
    Py_DECREF(outcomes);
    return failed;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_outcomes},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_sandbox",
    .m_doc = "The sandbox in C; use azr.sandbox.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__sandbox(void) { return PyModuleDef_Init(&definition); }
