/* Inside a child: one program, its inputs, one entry for each.
 *
 * The interpreter is a copy of the zygote's, warm and single-threaded. Nothing here trusts the
 * program: results are kept in C, values are encoded by their exact type, an exception is known by
 * the address of its class, and the process ends without finalisers.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <marshal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct sbx_runtime runtime_of_this_process;

int sbx_runtime_set(PyObject *builtins, PyObject *exceptions, const struct sbx_limits *limits)
{
    runtime_of_this_process =
        (struct sbx_runtime){Py_NewRef(builtins), Py_NewRef(exceptions), NULL, NULL, *limits};
    return sbx_runtime_renew();
}

/* With keys of their own: those that the interpreter shares lie on pages that no child should write
 * to, as a reference does. */
static PyObject *make_globals(PyObject *builtins)
{
    static const char *const names[] = {"__builtins__", "__name__", "__doc__", "__loader__",
                                        "__package__", "__spec__"};
    PyObject *globals = PyDict_New(), *name = PyUnicode_FromString("program");
    int failed = globals == NULL || name == NULL;

    for (size_t i = 0; !failed && i < sizeof names / sizeof *names; i++) {
        PyObject *key = PyUnicode_FromString(names[i]);
        failed = key == NULL ||
                 PyDict_SetItem(globals, key, i == 0 ? builtins : i == 1 ? name : Py_None) < 0;
        Py_XDECREF(key);
    }
    Py_XDECREF(name);
    if (failed)
        Py_CLEAR(globals);
    return globals;
}

/* The old ones stay: what is freed makes a gap. */
int sbx_runtime_renew(void)
{
    PyObject *module = PyModule_New("program");
    PyObject *globals = make_globals(runtime_of_this_process.builtins);
    if (module == NULL || globals == NULL ||
        PyDict_SetItemString(PyImport_GetModuleDict(), "program", module) < 0)
        return -1;
    runtime_of_this_process.module = module;
    runtime_of_this_process.globals = globals;
    return 0;
}

struct sbx_runtime *sbx_runtime_get(void)
{
    return runtime_of_this_process.builtins ? &runtime_of_this_process : NULL;
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Allocates blocks of every small size and frees half of them, in an order drawn from the seed, so
 * that neither addresses nor their order repeat from run to run. */
static void shake_allocator(uint32_t seed)
{
    enum { SIZES = 32, BLOCKS = 24 };
    void *blocks[SIZES * BLOCKS];
    uint32_t state = seed * 2654435761u | 1u;

    for (size_t i = 0; i < SIZES * BLOCKS; i++)
        blocks[i] = PyObject_Malloc(16 * (i % SIZES + 1));
    for (size_t left = SIZES * BLOCKS; left > SIZES * BLOCKS / 2; left--) {
        size_t chosen;
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        chosen = state % left;
        PyObject_Free(blocks[chosen]);
        blocks[chosen] = blocks[left - 1];
    }
}

/* ---- Entries ---------------------------------------------------------------------------------- */

static unsigned char *output_at(struct sbx_slot *slot, uint32_t offset)
{
    return (unsigned char *)slot + slot->output_offset + offset;
}

/* The room of the next payload, as limits and slot allow. */
static struct sbx_writer open_entry(struct sbx_slot *slot, const struct sbx_limits *limits)
{
    size_t used = slot->output_used + sizeof(struct sbx_entry);
    size_t room = slot->output_capacity > used ? slot->output_capacity - used : 0;
    unsigned char *start = output_at(slot, slot->output_used) + sizeof(struct sbx_entry);
    if (room > limits->output_bytes)
        room = limits->output_bytes;
    return (struct sbx_writer){start, start, start + room, limits->depth, limits->node_count, NULL};
}

static void commit_entry(struct sbx_slot *slot, enum sbx_outcome outcome, uint32_t payload_bytes)
{
    struct sbx_entry *entry = (struct sbx_entry *)output_at(slot, slot->output_used);
    entry->outcome = outcome | (sbx_may_differ || sbx_memory_ran_out ? SBX_MAY_DIFFER : 0);
    entry->payload_bytes = payload_bytes;
    entry->cpu_ns = 0;
    if (slot->run.input_count > 1) {
        int64_t now_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        entry->cpu_ns = now_cpu_ns - slot->input_start_cpu_ns;
        slot->input_start_cpu_ns = now_cpu_ns;
        slot->input_start_wall_ns = clock_ns(CLOCK_MONOTONIC);
    }
    slot->output_used += (uint32_t)SBX_ALIGN8(sizeof *entry + payload_bytes);
    __atomic_store_n(&slot->committed, slot->committed + 1, __ATOMIC_RELEASE);
}

static void commit_text(struct sbx_slot *slot, const struct sbx_limits *limits,
                        enum sbx_outcome outcome, const char *text)
{
    struct sbx_writer w = open_entry(slot, limits);
    size_t byte_count = text ? strlen(text) : 0;
    if (byte_count > (size_t)(w.end - w.at))
        byte_count = 0;
    memcpy(w.start, text ? text : "", byte_count);
    commit_entry(slot, outcome, (uint32_t)byte_count);
}

/* ---- Exceptions ------------------------------------------------------------------------------- */

/* The name of a class that the zygote knew, whatever the class says of itself: a look-up would ask
 * its metaclass. Subclasses of the program's own are all the same. */
static const char *exception_name(PyObject *type, const struct sbx_runtime *runtime)
{
    PyObject *known, *name;
    Py_ssize_t position = 0;

    while (PyDict_Next(runtime->exceptions, &position, &known, &name))
        if (known == type)
            return PyUnicode_AsUTF8(name);
    return "UserException";
}

/* Python 3.11 has this for a frame that there is no memory for. */
static bool is_lack_of_memory(PyObject *type, PyObject *value)
{
    static const char lack[] = "error return without exception set";
    if (type == PyExc_MemoryError)
        return true;
    if (type != PyExc_SystemError || value == NULL)
        return false;
    if (Py_IS_TYPE(value, (PyTypeObject *)PyExc_SystemError)) {
        PyObject *args = ((PyBaseExceptionObject *)value)->args;
        value = PyTuple_GET_SIZE(args) ? PyTuple_GET_ITEM(args, 0) : value;
    }
    return PyUnicode_CheckExact(value) && PyUnicode_CompareWithASCIIString(value, lack) == 0;
}

/* Makes the exception that is set the result of the next `count` inputs. */
static void commit_exception(struct sbx_slot *slot, const struct sbx_runtime *runtime,
                             uint32_t count)
{
    enum sbx_outcome outcome = SBX_EXCEPTION;
    const char *text = NULL;
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback); /* `type` is kept: the child dies soon */
    bool lacks_memory = is_lack_of_memory(type, value);
    /* May run the program's __del__, whose exceptions go nowhere. */
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    PyErr_Clear();
    if (*sbx_refused) {
        outcome = SBX_FORBIDDEN_IMPORT;
        text = sbx_refused;
    } else if (lacks_memory)
        outcome = SBX_MEMORY;
    else
        text = type ? exception_name(type, runtime) : "SystemError";
    for (uint32_t i = 0; i < count; i++)
        commit_text(slot, &runtime->limits, outcome, text);
    if (*sbx_refused)
        *sbx_refused = '\0';
}

/* ---- One input -------------------------------------------------------------------------------- */

static void commit_value(struct sbx_slot *slot, const struct sbx_runtime *runtime, PyObject *value)
{
    struct sbx_writer w = open_entry(slot, &runtime->limits);
    enum sbx_outcome outcome = sbx_encode(value, &w);

    if (*sbx_refused) {
        commit_text(slot, &runtime->limits, SBX_FORBIDDEN_IMPORT, sbx_refused);
        *sbx_refused = '\0';
    } else if (outcome == SBX_OK)
        commit_entry(slot, SBX_OK, (uint32_t)(w.at - w.start));
    else
        commit_text(slot, &runtime->limits, outcome, w.unsupported);
}

static void run_input(struct sbx_slot *slot, const struct sbx_runtime *runtime, PyObject *function,
                      const char *text, uint32_t byte_count)
{
    PyObject *args, *kwargs, *value;

    if (*sbx_refused) /* freeing the value before has asked for something */
        *sbx_refused = '\0';
    if (sbx_parse_args(text, byte_count, runtime->limits.depth, &args, &kwargs) < 0) {
        bool memory = PyErr_ExceptionMatches(PyExc_MemoryError);
        PyErr_Clear();
        commit_text(slot, &runtime->limits, memory ? SBX_MEMORY : SBX_SYNTAX_ERROR, "arguments");
        return;
    }
    value = PyObject_Call(function, args, kwargs);
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    if (value == NULL) {
        commit_exception(slot, runtime, 1);
        return;
    }
    commit_value(slot, runtime, value);
    Py_DECREF(value);
}

/* ---- The program ------------------------------------------------------------------------------ */

/* New globals, as the contents of the module that the zygote made: dataclasses and typing look there
 * for what an annotation names. Nothing here reads the module back. */
static PyObject *open_globals(const struct sbx_runtime *runtime)
{
    PyObject *globals = PyDict_Copy(runtime->globals);
    /* A module of its own would cost a child three page faults. The old contents stay. */
    if (globals != NULL)
        *_PyObject_GetDictPtr(runtime->module) = Py_NewRef(globals);
    return globals;
}

/* The program's f, or NULL with an exception set. */
static PyObject *load(const struct sbx_slot *slot, const struct sbx_runtime *runtime)
{
    PyObject *code = NULL, *globals = NULL, *done = NULL, *function = NULL;

    code = PyMarshal_ReadObjectFromString((const char *)slot->body, slot->run.code_bytes);
    if (code == NULL)
        goto end;
    if ((globals = open_globals(runtime)) == NULL)
        goto end;
    if ((done = PyEval_EvalCode(code, globals, globals)) == NULL)
        goto end;
    function = Py_XNewRef(PyDict_GetItemString(globals, "f"));
    if (function == NULL)
        PyErr_SetString(PyExc_NameError, "f");
end:
    /* `globals` stays: the process is about to die, and freeing would run code. */
    Py_XDECREF(done);
    Py_XDECREF(code);
    return function;
}

void sbx_run_program(struct sbx_slot *slot, const struct sbx_runtime *runtime)
{
    const unsigned char *input = slot->body + slot->run.code_bytes;
    uint32_t input_count = slot->run.input_count;
    PyObject *function;

    if (slot->run.shake_seed)
        shake_allocator(slot->run.shake_seed);
    function = load(slot, runtime);
    /* What was refused while it loaded is refused to every input, for each depends on it. */
    if (function == NULL || *sbx_refused) {
        commit_exception(slot, runtime, input_count);
        return;
    }
    for (uint32_t i = 0; i < input_count; i++) {
        uint32_t byte_count;
        memcpy(&byte_count, input, sizeof byte_count);
        input += sizeof byte_count;
        if (i > 0)
            sbx_forget_caches();
        run_input(slot, runtime, function, (const char *)input, byte_count);
        input += byte_count;
    }
}
