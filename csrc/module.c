/* azr._sandbox: what Python sees. The client uses decode_entries, parse_args, encode, decode and
 * OUTCOMES; the rest is called by zygotes and compilers on their own processes. */
#include "sandbox.h"

#include <marshal.h>
#include <stdlib.h>
#include <string.h>

/* ---- Values ----------------------------------------------------------------------------------- */

static PyObject *py_decode(PyObject *self, PyObject *args)
{
    Py_buffer bytes;
    unsigned int depth;
    PyObject *value;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*I:decode", &bytes, &depth))
        return NULL;
    value = sbx_decode(bytes.buf, (size_t)bytes.len, depth);
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

/* One entry of a report as (outcome, payload, value, cpu_ns, whether an address was shown). */
static PyObject *entry_tuple(const struct sbx_entry *entry, const unsigned char *payload,
                             uint32_t depth)
{
    uint32_t outcome = entry->outcome & ~SBX_SHOWS_IDENTITY;
    PyObject *value;
    if (outcome == SBX_OK)
        value = sbx_decode(payload, entry->payload_bytes, depth);
    else
        value = PyUnicode_DecodeASCII((const char *)payload, entry->payload_bytes, "replace");
    if (value == NULL)
        return NULL;
    return Py_BuildValue("(Iy#NLN)", outcome, payload, (Py_ssize_t)entry->payload_bytes, value,
                         (long long)entry->cpu_ns, PyBool_FromLong(outcome != entry->outcome));
}

/* What a program can cause by itself; anything else in an entry is forged. */
static bool is_entry_outcome(uint32_t outcome)
{
    outcome &= ~SBX_SHOWS_IDENTITY;
    return outcome == SBX_OK || outcome == SBX_SYNTAX_ERROR || outcome == SBX_FORBIDDEN_IMPORT ||
           outcome == SBX_EXCEPTION || outcome == SBX_MEMORY || outcome == SBX_TOO_LARGE ||
           outcome == SBX_UNSUPPORTED_VALUE;
}

static PyObject *py_decode_entries(PyObject *self, PyObject *args)
{
    Py_buffer bytes;
    unsigned int count, depth;
    PyObject *entries = NULL;
    const unsigned char *at, *end;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*II:decode_entries", &bytes, &count, &depth))
        return NULL;
    at = bytes.buf;
    end = at + bytes.len;
    entries = PyList_New(0);
    for (unsigned int i = 0; entries != NULL && i < count; i++) {
        struct sbx_entry entry = {0};
        PyObject *tuple = NULL;
        bool whole = (size_t)(end - at) >= sizeof entry;
        if (whole) {
            memcpy(&entry, at, sizeof entry);
            at += sizeof entry;
            whole = entry.payload_bytes <= (size_t)(end - at) && is_entry_outcome(entry.outcome);
        }
        if (whole)
            tuple = entry_tuple(&entry, at, depth);
        else
            PyErr_SetString(PyExc_ValueError, "not the bytes of a report");
        if (tuple == NULL || PyList_Append(entries, tuple) < 0)
            Py_CLEAR(entries);
        Py_XDECREF(tuple);
        if (entries != NULL) {
            size_t skip = SBX_ALIGN8(sizeof entry + entry.payload_bytes) - sizeof entry;
            at = skip > (size_t)(end - at) ? end : at + skip;
        }
    }
    PyBuffer_Release(&bytes);
    return entries;
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
                          &limits->job_bytes, &limits->output_bytes, &limits->input_count,
                          &limits->depth, &limits->node_count))
        return -1;
    limits->cpu_ns = cpu_ns;
    limits->wall_ns = wall_ns;
    limits->memory_bytes = memory_bytes;
    return 0;
}

static PyObject *py_prepare(PyObject *self, PyObject *args)
{
    PyObject *builtins, *exceptions, *allowed, *loaded, *original, *limit_values;
    struct sbx_limits limits;

    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OO!:prepare", &PyDict_Type, &builtins, &PyDict_Type,
                          &exceptions, &PyDict_Type, &allowed, &PyDict_Type, &loaded, &original,
                          &PyTuple_Type, &limit_values))
        return NULL;
    if (parse_limits(limit_values, &limits) < 0)
        return NULL;
    sbx_imports_set(allowed, loaded, original);
    if (sbx_runtime_set(builtins, exceptions, &limits) < 0)
        return NULL;
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
    if (sbx_runtime_renew_module() < 0)
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
    slot->job.code_bytes = (uint32_t)PyBytes_GET_SIZE(bytes);
    slot->job.input_count = 1;
    slot->output_offset = ROOM_BYTES / 2;
    slot->output_capacity = ROOM_BYTES / 2;
    memcpy(slot->job_bytes, PyBytes_AS_STRING(bytes), slot->job.code_bytes);
    input = slot->job_bytes + slot->job.code_bytes;
    memcpy(input, &size, sizeof size);
    memcpy(input + sizeof size, text, size);
    sbx_run_program(slot, sbx_runtime_get());
    Py_DECREF(bytes);
    size = ((struct sbx_entry *)((unsigned char *)slot + slot->output_offset))->outcome;
    sbx_identity_was_shown = 0;
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
    unsigned int source_bytes_max;
    PyObject *allowed, *risky_names, *opcodes;

    (void)self;
    if (!PyArg_ParseTuple(args, "iIOOO!:serve_compiler", &fd, &source_bytes_max, &allowed,
                          &risky_names, &PyDict_Type, &opcodes))
        return NULL;
    if (sbx_compiler_serve(fd, source_bytes_max, allowed, risky_names, opcodes) < 0)
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
    {"decode", py_decode, METH_VARARGS, "decode(bytes, depth) -> value of canonical bytes"},
    {"encode", py_encode, METH_VARARGS,
     "encode(value, bytes, depth, nodes) -> (outcome, canonical bytes or a type's name)"},
    {"parse_args", py_parse_args, METH_VARARGS,
     "parse_args(text, depth) -> (args, kwargs) of literals; SyntaxError for anything else"},
    {"decode_entries", py_decode_entries, METH_VARARGS,
     "decode_entries(bytes, count, depth) -> [(outcome, payload, value or text, cpu_ns, bool)]"},
    {"die_with", py_die_with, METH_VARARGS, "die_with(parent): SIGKILL when the parent dies"},
    {"lock_down", py_lock_down, METH_VARARGS, "lock_down(is_zygote, memory_bytes) -> layers"},
    {"prepare", py_prepare, METH_VARARGS,
     "prepare(builtins, exceptions, allowed, loaded, import, limits)"},
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
     "serve_compiler(fd, source_bytes, allowed, risky_names, opcodes)"},
    {"syscalls", py_syscalls, METH_NOARGS, "syscalls() -> [(name, number, what a child gets)]"},
    {"import_module", (PyCFunction)(void (*)(void))sbx_import, METH_VARARGS | METH_KEYWORDS,
     "import_module(name, globals, locals, fromlist, level): the import of programs"},
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
