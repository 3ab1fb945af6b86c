/* What a program can do that has taken over its process: raw system calls and raw memory. Built by
 * the tests, loaded into zygotes of theirs alone. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

static long raw(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#endif
}

/* call(number, *six) -> result, -errno where refused */
static PyObject *py_call(PyObject *self, PyObject *args)
{
    long n[7] = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "l|llllll", &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6]))
        return NULL;
    return PyLong_FromLong(raw(n[0], n[1], n[2], n[3], n[4], n[5], n[6]));
}

/* int80(number) -> result of the 32-bit entry */
static PyObject *py_int80(PyObject *self, PyObject *args)
{
    long number, result = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "l", &number))
        return NULL;
#if defined(__x86_64__)
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0) : "memory");
#endif
    return PyLong_FromLong(result);
}

/* peek(address, n) -> bytes */
static PyObject *py_peek(PyObject *self, PyObject *args)
{
    unsigned long address;
    Py_ssize_t byte_count;
    (void)self;
    if (!PyArg_ParseTuple(args, "kn", &address, &byte_count))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)address, byte_count);
}

/* poke(address, bytes) */
static PyObject *py_poke(PyObject *self, PyObject *args)
{
    unsigned long address;
    const char *bytes;
    Py_ssize_t byte_count;
    (void)self;
    if (!PyArg_ParseTuple(args, "ky#", &address, &bytes, &byte_count))
        return NULL;
    memcpy((void *)address, bytes, (size_t)byte_count);
    Py_RETURN_NONE;
}

/* jump(address): calls whatever stands there */
static PyObject *py_jump(PyObject *self, PyObject *args)
{
    unsigned long address;
    (void)self;
    if (!PyArg_ParseTuple(args, "k", &address))
        return NULL;
    return PyLong_FromLong(((long (*)(long))address)(39));
}

static int is_readable(uintptr_t address)
{
    /* rt_sigprocmask(SIG_BLOCK, address, NULL, 8) fails cleanly where nothing is mapped. */
#if defined(__x86_64__)
    return raw(14, 0, (long)address, 0, 8, 0, 0) == 0;
#else
    return raw(135, 0, (long)address, 0, 8, 0, 0) == 0;
#endif
}

/* A pointer into the first page of a slot gives it away: the run's header repeats the length of the
 * frame, and marshalled code stands behind it. */
static int looks_like_slot(uintptr_t page, uintptr_t header_bytes)
{
    uint32_t head[7];
    if (page == 0 || !is_readable(page))
        return 0;
    memcpy(head, (void *)page, sizeof head);
    return (*(unsigned char *)(page + header_bytes) & 0x7f) == 0x63 && head[3] > 0 && head[3] < 1000 &&
           head[2] < head[0] && head[6] >= head[0] && head[6] < head[0] + 64;
}

/* slot(header_bytes) -> address of this process's slot, found from the stack up; 0 if nowhere. */
static PyObject *py_slot(PyObject *self, PyObject *args)
{
    uintptr_t at = (uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)7;
    long header_bytes;
    (void)self;
    if (!PyArg_ParseTuple(args, "l", &header_bytes))
        return NULL;
    for (; is_readable(at); at += 8) {
        uintptr_t page = *(uintptr_t *)at & ~(uintptr_t)4095;
        if (looks_like_slot(page, (uintptr_t)header_bytes))
            return PyLong_FromUnsignedLong(page);
    }
    return PyLong_FromLong(0);
}

static PyMethodDef methods[] = {
    {"call", py_call, METH_VARARGS, NULL}, {"int80", py_int80, METH_VARARGS, NULL},
    {"peek", py_peek, METH_VARARGS, NULL}, {"poke", py_poke, METH_VARARGS, NULL},
    {"jump", py_jump, METH_VARARGS, NULL}, {"slot", py_slot, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "rawcall", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit_rawcall(void) { return PyModuleDef_Init(&definition); }
