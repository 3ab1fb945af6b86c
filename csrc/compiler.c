/* The compiler process: source text in, marshalled code out. It runs nothing of what it reads.
 *
 * One look at the code tells two things more. Which modules it imports, so that a forbidden one is
 * refused before any process is made. And whether it can see the order of a set, a hash or an
 * identity, so that a label takes more seeds; the opcodes and names of the code are its syntax
 * tree without the layout, and reading them takes microseconds.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <marshal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct scan {
    PyObject *allowed, *risky_names;
    int import_name, extended_arg, binary_op;
    int risky_ops[4];
    /* Found so far. */
    PyObject *forbidden; /* name of a module, NULL if none */
    bool is_risky, has_view, has_set_operator;
};

static void note_operator(struct scan *s, int arg)
{
    /* The operators' numbers are the same in all supported versions; 13 more in place. */
    int op = arg >= 13 ? arg - 13 : arg;
    s->has_set_operator |= op == 1 || op == 7 || op == 10 || op == 12; /* & | - ^ */
}

/* The views of a dict make sets by operators, and the module of that name has them as functions. */
static void note_word(struct scan *s, const char *text)
{
    s->has_view |= strcmp(text, "keys") == 0 || strcmp(text, "items") == 0;
    s->has_set_operator |= strcmp(text, "operator") == 0;
}

static int scan_ops(struct scan *s, PyObject *bytecode, PyObject *names)
{
    const unsigned char *ops = (const unsigned char *)PyBytes_AS_STRING(bytecode);
    Py_ssize_t byte_count = PyBytes_GET_SIZE(bytecode);
    Py_ssize_t arg = 0;

    for (Py_ssize_t i = 0; i + 1 < byte_count; i += 2) {
        int op = ops[i];
        arg = arg << 8 | ops[i + 1];
        if (op == s->extended_arg)
            continue;
        if (op == s->import_name && arg < PyTuple_GET_SIZE(names) && s->forbidden == NULL) {
            PyObject *name = PyTuple_GET_ITEM(names, arg);
            int known = PySet_Contains(s->allowed, name);
            if (known < 0)
                return -1;
            if (!known)
                s->forbidden = Py_NewRef(name);
        }
        if (op == s->binary_op)
            note_operator(s, (int)arg);
        for (size_t k = 0; k < sizeof s->risky_ops / sizeof *s->risky_ops; k++)
            s->is_risky |= op == s->risky_ops[k];
        arg = 0;
    }
    return 0;
}

static int scan_names(struct scan *s, PyObject *names)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        const char *text = PyUnicode_AsUTF8(name);
        int known = PySet_Contains(s->risky_names, name);
        if (known < 0 || text == NULL)
            return -1;
        s->is_risky |= known || strncmp(text, "__", 2) == 0;
        note_word(s, text);
    }
    return 0;
}

static int scan_code(struct scan *s, PyObject *code);

/* A text may name an attribute: in a format, in a pattern of a match, for a function that takes
 * names. One that is built at run time needs such a function, and those are risky names. */
static int scan_constant(struct scan *s, PyObject *constant)
{
    int failed = 0;
    if (PyCode_Check(constant))
        return scan_code(s, constant);
    if (PyUnicode_Check(constant)) {
        const char *text = PyUnicode_AsUTF8(constant);
        s->is_risky |= text == NULL || strstr(text, "__") != NULL;
        if (text != NULL)
            note_word(s, text);
        PyErr_Clear(); /* a lone surrogate has no UTF-8 */
    }
    s->is_risky |= PyFrozenSet_CheckExact(constant);
    for (Py_ssize_t i = 0; !failed && PyTuple_Check(constant) && i < PyTuple_GET_SIZE(constant); i++)
        failed = scan_constant(s, PyTuple_GET_ITEM(constant, i));
    return failed;
}

/* The code object and every one inside it; the compiler has bounded their nesting. */
static int scan_code(struct scan *s, PyObject *code)
{
    PyObject *bytecode = PyObject_GetAttrString(code, "co_code");
    PyObject *names = PyObject_GetAttrString(code, "co_names");
    PyObject *constants = PyObject_GetAttrString(code, "co_consts");
    int failed = -1;

    if (bytecode == NULL || names == NULL || constants == NULL)
        goto done;
    if (scan_ops(s, bytecode, names) < 0 || scan_names(s, names) < 0)
        goto done;
    failed = scan_constant(s, constants);
done:
    Py_XDECREF(bytecode);
    Py_XDECREF(names);
    Py_XDECREF(constants);
    return failed;
}

static bool is_risky(const struct scan *s)
{
    return s->is_risky || (s->has_view && s->has_set_operator);
}

/* ---- One source ------------------------------------------------------------------------------- */

/* The parser says MemoryError of a text that is too complex for it, too: whether there was no memory
 * is known to the allocators alone. */
static PyMemAllocatorEx allocators[3];
static bool memory_ran_out;

static void *noted(void *block)
{
    memory_ran_out |= block == NULL;
    return block;
}

static void *watched_malloc(void *context, size_t byte_count)
{
    PyMemAllocatorEx *base = context;
    return noted(base->malloc(base->ctx, byte_count));
}

static void *watched_calloc(void *context, size_t count, size_t byte_count)
{
    PyMemAllocatorEx *base = context;
    return noted(base->calloc(base->ctx, count, byte_count));
}

static void *watched_realloc(void *context, void *block, size_t byte_count)
{
    PyMemAllocatorEx *base = context;
    return noted(base->realloc(base->ctx, block, byte_count));
}

static void watched_free(void *context, void *block)
{
    PyMemAllocatorEx *base = context;
    base->free(base->ctx, block);
}

static void watch_memory(void)
{
    const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    for (int i = 0; i < 3; i++) {
        PyMemAllocatorEx watched = {&allocators[i], watched_malloc, watched_calloc,
                                    watched_realloc, watched_free};
        PyMem_GetAllocator(domains[i], &allocators[i]);
        PyMem_SetAllocator(domains[i], &watched);
    }
}

/* Whatever the parser says against a text, depth and size included, is a syntax error, unless memory
 * ran out. */
static enum sbx_outcome refusal(void)
{
    PyErr_Clear();
    return memory_ran_out ? SBX_MEMORY : SBX_SYNTAX_ERROR;
}

/* *payload: bytes, or NULL. */
static enum sbx_outcome compile_source(struct scan *s, const char *source, size_t byte_count,
                                       PyObject **payload)
{
    PyCompilerFlags flags = {.cf_flags = PyCF_SOURCE_IS_UTF8 | PyCF_IGNORE_COOKIE,
                             .cf_feature_version = PY_MINOR_VERSION};
    PyObject *code;
    enum sbx_outcome outcome = SBX_OK;

    *payload = NULL;
    memory_ran_out = false;
    if (memchr(source, '\0', byte_count) != NULL)
        return SBX_SYNTAX_ERROR;
    code = Py_CompileStringExFlags(source, "<program>", Py_file_input, &flags, 0);
    if (code == NULL)
        return refusal();
    if (scan_code(s, code) < 0)
        outcome = refusal();
    else if (s->forbidden != NULL) {
        outcome = SBX_FORBIDDEN_IMPORT;
        *payload = PyUnicode_AsUTF8String(s->forbidden);
    } else if ((*payload = PyMarshal_WriteObjectToString(code, Py_MARSHAL_VERSION)) == NULL) {
        outcome = refusal();
    }
    PyErr_Clear();
    Py_DECREF(code);
    return outcome;
}

/* ---- Frames ----------------------------------------------------------------------------------- */

/* 1 when filled, 0 at the end of the stream, -1 with OSError. */
static int read_all(int fd, void *into, size_t byte_count)
{
    for (unsigned char *at = into; byte_count;) {
        ssize_t got = read(fd, at, byte_count);
        if (got == 0)
            return 0;
        if (got < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (got > 0)
            at += got, byte_count -= (size_t)got;
    }
    return 1;
}

static int write_all(int fd, const void *from, size_t byte_count)
{
    for (const unsigned char *at = from; byte_count;) {
        ssize_t sent = write(fd, at, byte_count);
        if (sent < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (sent > 0)
            at += sent, byte_count -= (size_t)sent;
    }
    return 0;
}

/* One write for the whole frame: each wakes the client up. */
static int answer(int fd, const struct sbx_compiled *head, const void *payload)
{
    unsigned char *frame = calloc(1, head->frame_bytes);
    int failed;

    if (frame == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(frame, head, sizeof *head);
    if (head->payload_bytes)
        memcpy(frame + sizeof *head, payload, head->payload_bytes);
    failed = write_all(fd, frame, head->frame_bytes);
    free(frame);
    return failed;
}

/* One frame: 1, 0 at the end of the stream, -1 with an exception. `text` has room for the longest
 * source and a NUL. */
static int serve_one(int fd, uint32_t source_bytes_max, char *text, const struct scan *template)
{
    struct scan s = *template;
    struct sbx_source head;
    struct sbx_compiled reply;
    PyObject *payload;
    size_t body_bytes;
    int going = read_all(fd, &head, sizeof head);

    if (going <= 0)
        return going;
    body_bytes = head.frame_bytes - sizeof head;
    if (head.frame_bytes < sizeof head || body_bytes > SBX_ALIGN8((size_t)source_bytes_max) ||
        head.source_bytes > body_bytes) {
        PyErr_SetString(PyExc_ValueError, "not a frame");
        return -1;
    }
    if ((going = read_all(fd, text, body_bytes)) <= 0)
        return going;
    text[head.source_bytes] = '\0';
    reply = (struct sbx_compiled){.id = head.id};
    reply.outcome = compile_source(&s, text, head.source_bytes, &payload);
    reply.is_risky = is_risky(&s);
    reply.payload_bytes = payload ? (uint32_t)PyBytes_GET_SIZE(payload) : 0;
    reply.frame_bytes = (uint32_t)SBX_ALIGN8(sizeof reply + reply.payload_bytes);
    going = answer(fd, &reply, payload ? PyBytes_AS_STRING(payload) : NULL) < 0 ? -1 : 1;
    Py_XDECREF(payload);
    Py_XDECREF(s.forbidden);
    return going;
}

static int opcode_number(PyObject *opcodes, const char *name)
{
    PyObject *number = PyDict_GetItemString(opcodes, name);
    return number ? (int)PyLong_AsLong(number) : -1;
}

int sbx_compiler_serve(int socket_fd, uint32_t source_bytes_max, PyObject *allowed,
                       PyObject *risky_names, PyObject *opcodes)
{
    struct scan template = {
        .allowed = allowed,
        .risky_names = risky_names,
        .import_name = opcode_number(opcodes, "IMPORT_NAME"),
        .extended_arg = opcode_number(opcodes, "EXTENDED_ARG"),
        .binary_op = opcode_number(opcodes, "BINARY_OP"),
        .risky_ops = {opcode_number(opcodes, "BUILD_SET"), opcode_number(opcodes, "SET_ADD"),
                      opcode_number(opcodes, "SET_UPDATE"),
                      opcode_number(opcodes, "LOAD_BUILD_CLASS")},
    };
    char *text = malloc(SBX_ALIGN8((size_t)source_bytes_max) + 8);
    int going = 1;

    if (text == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    watch_memory();
    while (going > 0)
        going = serve_one(socket_fd, source_bytes_max, text, &template);
    free(text);
    return going;
}
