/* The compiler process: source text in, marshalled code out. It runs nothing of what it reads.
 *
 * One look at the code tells three things more. Which modules it imports, so that a forbidden one is
 * refused before any process is made. Whether it is known not to see the order of a set, a hash or an
 * identity; otherwise a label takes more seeds. And whether it is known to keep nothing from one call
 * to the next; otherwise each of its inputs takes a process of its own. Known means: every name, every
 * attribute and every module that the code uses is on a list (modules.py), and what can keep or show
 * something by an operator is not there. The opcodes and names of the code are its syntax tree without
 * the layout, and reading them takes microseconds.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <marshal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What an opcode means to the scan. */
enum meaning {
    PLAIN = 0,
    IMPORT = 1,    /* of a module */
    NAME = 2,      /* read, of a global or a builtin */
    BIND = 3,      /* of a global */
    ATTRIBUTE = 4, /* read */
    OPERATOR = 5,  /* of two operands */
    SHOWS = 6,     /* makes a set or a class, or reads attributes by a pattern */
    KEEPS = 7,     /* writes to an attribute or a global */
    EXTENDS = 8,   /* the next argument */
    CONSTANT = 9,  /* read */
    MEANING = 15,
    KEEPS_IN_MODULE = 16, /* may make, outside of any function, what can be changed later */
    SHIFT = 32,           /* times the bits of the argument that are not the index of a name */
};

struct scan {
    const struct sbx_scan_lists *lists;
    PyObject *bound;     /* set of the globals that the program itself binds */
    PyObject *forbidden; /* name of a module, NULL if none */
    PyObject *receiver;  /* constant that the opcode before has read, NULL if none */
    bool is_module;      /* of the code that is looked at: no function around it */
    bool is_risky, keeps, has_view, has_set_operator;
};

static void note_operator(struct scan *s, Py_ssize_t arg)
{
    /* The operators' numbers are the same in all supported versions; 13 more in place. */
    Py_ssize_t op = arg >= 13 ? arg - 13 : arg;
    s->has_set_operator |= op == 1 || op == 7 || op == 10 || op == 12; /* & | - ^ */
}

static int note_import(struct scan *s, PyObject *name)
{
    int allowed = PySet_Contains(s->lists->allowed, name);
    int plain = PySet_Contains(s->lists->plain_modules, name);
    int stateless = PySet_Contains(s->lists->stateless_modules, name);

    if (allowed < 0 || plain < 0 || stateless < 0)
        return -1;
    if (!allowed && s->forbidden == NULL)
        s->forbidden = Py_NewRef(name);
    s->is_risky |= !plain;
    s->keeps |= !stateless;
    /* Its functions make sets of the views of a dict. */
    s->has_set_operator |= PyUnicode_CompareWithASCIIString(name, "operator") == 0;
    return 0;
}

/* A builtin that is not on the list stays what it is even where the program binds the name: it may do
 * so later, or not at all. */
static int note_name(struct scan *s, PyObject *name)
{
    int plain = PySet_Contains(s->lists->plain_builtins, name), bound, builtin;

    if (plain)
        return plain < 0 ? -1 : 0;
    bound = PySet_Contains(s->bound, name);
    builtin = PyDict_Contains(s->lists->builtins, name);
    if (bound < 0 || builtin < 0)
        return -1;
    s->is_risky |= !bound || builtin;
    return 0;
}

/* Whether a text to format reads nothing but what it is given: `{0.x}` and `{0[x]}` reach further. */
static bool is_plain_format(PyObject *text)
{
    bool in_field = false;

    if (text == NULL || !PyUnicode_CheckExact(text))
        return false;
    for (Py_ssize_t i = 0; i < PyUnicode_GET_LENGTH(text); i++) {
        Py_UCS4 c = PyUnicode_READ_CHAR(text, i);
        if (in_field && (c == '.' || c == '['))
            return false;
        /* A field in a specification begins anew, and so does what only looks like one: `{{`. */
        in_field = c == '{' || (in_field && c != ':' && c != '!' && c != '}');
    }
    return true;
}

static int note_attribute(struct scan *s, PyObject *name)
{
    int plain = PySet_Contains(s->lists->plain_attributes, name);

    if (plain < 0)
        return -1;
    if (PyUnicode_CompareWithASCIIString(name, "format") == 0)
        plain = is_plain_format(s->receiver);
    s->is_risky |= !plain;
    /* The views of a dict make sets by operators. */
    s->has_view |= PyUnicode_CompareWithASCIIString(name, "keys") == 0 ||
                   PyUnicode_CompareWithASCIIString(name, "items") == 0;
    return 0;
}

/* One opcode; `binding` in the first of two looks at all code, which finds out what is bound. */
static int note_op(struct scan *s, int entry, Py_ssize_t arg, PyObject *names, bool binding)
{
    enum meaning meaning = entry & MEANING;
    Py_ssize_t at = arg >> entry / SHIFT;
    bool has_name = meaning >= IMPORT && meaning <= ATTRIBUTE;
    PyObject *name = has_name && at < PyTuple_GET_SIZE(names) ? PyTuple_GET_ITEM(names, at) : NULL;

    if (has_name && name == NULL)
        s->is_risky = s->keeps = true;
    if (binding)
        return meaning == BIND && name ? PySet_Add(s->bound, name) : 0;
    s->keeps |= meaning == KEEPS || (s->is_module && entry & KEEPS_IN_MODULE);
    s->is_risky |= meaning == SHOWS;
    if (meaning == OPERATOR)
        note_operator(s, arg);
    if (name != NULL && meaning == IMPORT)
        return note_import(s, name);
    if (name != NULL && meaning == NAME)
        return note_name(s, name);
    if (name != NULL && meaning == ATTRIBUTE)
        return note_attribute(s, name);
    return 0;
}

static int scan_ops(struct scan *s, PyObject *bytecode, PyObject *names, PyObject *constants,
                    bool binding)
{
    const unsigned char *ops = (const unsigned char *)PyBytes_AS_STRING(bytecode);
    Py_ssize_t byte_count = PyBytes_GET_SIZE(bytecode), arg = 0;

    for (Py_ssize_t i = 0; i + 1 < byte_count; i += 2) {
        int entry = s->lists->meanings[ops[i]];
        arg = arg << 8 | ops[i + 1];
        if ((entry & MEANING) == EXTENDS)
            continue;
        if (note_op(s, entry, arg, names, binding) < 0)
            return -1;
        s->receiver = (entry & MEANING) == CONSTANT && arg < PyTuple_GET_SIZE(constants)
                          ? PyTuple_GET_ITEM(constants, arg)
                          : NULL;
        arg = 0;
    }
    return 0;
}

static int scan_code(struct scan *s, PyObject *code, bool binding);

static int scan_constant(struct scan *s, PyObject *constant, bool binding)
{
    if (PyCode_Check(constant))
        return scan_code(s, constant, binding);
    s->is_risky |= PyFrozenSet_CheckExact(constant);
    return 0;
}

/* The code object and every one inside it; the compiler has bounded their nesting. */
static int scan_code(struct scan *s, PyObject *code, bool binding)
{
    PyObject *bytecode = PyObject_GetAttrString(code, "co_code");
    PyObject *names = PyObject_GetAttrString(code, "co_names");
    PyObject *constants = PyObject_GetAttrString(code, "co_consts");
    bool was_module = s->is_module;
    int failed = bytecode == NULL || names == NULL || constants == NULL ||
                 scan_ops(s, bytecode, names, constants, binding) < 0;

    s->is_module = false;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(constants); i++)
        failed = scan_constant(s, PyTuple_GET_ITEM(constants, i), binding);
    s->is_module = was_module;
    Py_XDECREF(bytecode);
    Py_XDECREF(names);
    Py_XDECREF(constants);
    return failed ? -1 : 0;
}

static int scan_program(struct scan *s, PyObject *code)
{
    int failed;
    if ((s->bound = PySet_New(NULL)) == NULL)
        return -1;
    s->is_module = true;
    failed = scan_code(s, code, true) < 0 || scan_code(s, code, false) < 0;
    Py_CLEAR(s->bound);
    s->is_risky |= s->has_view && s->has_set_operator;
    /* What sees an identity sees what other calls have allocated. */
    s->keeps |= s->is_risky;
    return failed ? -1 : 0;
}

/* ---- One source ------------------------------------------------------------------------------- */

/* Whatever the parser says against a text, depth and size included, is a syntax error, unless memory
 * ran out. */
static enum sbx_outcome refusal(void)
{
    PyErr_Clear();
    return sbx_memory_ran_out ? SBX_MEMORY : SBX_SYNTAX_ERROR;
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
    sbx_memory_ran_out = false;
    if (memchr(source, '\0', byte_count) != NULL)
        return SBX_SYNTAX_ERROR;
    code = Py_CompileStringExFlags(source, "<program>", Py_file_input, &flags, 0);
    if (code == NULL)
        return refusal();
    if (scan_program(s, code) < 0)
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
static int serve_one(int fd, uint32_t source_bytes_max, uint32_t code_bytes_max, char *text,
                     const struct sbx_scan_lists *lists)
{
    struct scan s = {.lists = lists};
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
    if (payload != NULL && PyBytes_GET_SIZE(payload) > code_bytes_max) {
        Py_CLEAR(payload);
        reply.outcome = SBX_TOO_LARGE;
    }
    reply.traits = (s.is_risky ? SBX_RISKY : 0) | (s.keeps ? SBX_KEEPS : 0);
    reply.payload_bytes = payload ? (uint32_t)PyBytes_GET_SIZE(payload) : 0;
    reply.frame_bytes = (uint32_t)SBX_ALIGN8(sizeof reply + reply.payload_bytes);
    going = answer(fd, &reply, payload ? PyBytes_AS_STRING(payload) : NULL) < 0 ? -1 : 1;
    Py_XDECREF(payload);
    Py_XDECREF(s.forbidden);
    return going;
}

int sbx_compiler_serve(int socket_fd, uint32_t source_bytes_max, uint32_t code_bytes_max,
                       const struct sbx_scan_lists *lists)
{
    char *text = malloc(SBX_ALIGN8((size_t)source_bytes_max) + 8);
    int going = 1;

    if (text == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    while (going > 0)
        going = serve_one(socket_fd, source_bytes_max, code_bytes_max, text, lists);
    free(text);
    return going;
}
