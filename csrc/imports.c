/* The import statement inside a child: a look into a table, never a search.
 *
 * Every allowed module was loaded by the zygote. Another name, whether the program writes it or
 * builds it at run time, is refused in the same way everywhere, and the refusal is the outcome of
 * that input even if the program catches the ImportError. So is whatever else a program may reach for
 * in CPython and does not get here: `open`, an encoding, a part of `sys` or `os`.
 *
 * The interpreter itself imports some modules at its first need, and that is not the program's doing.
 */
#include "sandbox.h"

#include <stdio.h>

char sbx_refused[SBX_REFUSED_BYTES];

static struct {
    PyObject *allowed, *internal, *loaded, *caches, *original;
    bool has_caches; /* the program has imported a module that has some */
} imports;

int sbx_imports_set(PyObject *allowed, PyObject *internal, PyObject *loaded, PyObject *caches,
                    PyObject *original)
{
    imports.allowed = Py_NewRef(allowed);
    imports.internal = Py_NewRef(internal);
    imports.loaded = Py_NewRef(loaded);
    imports.caches = Py_NewRef(caches);
    imports.original = Py_NewRef(original);
    return 0;
}

/* Whether an import statement stands in a module that the zygote loaded, such as an allowed one
 * that imports another when it is first used. */
static bool is_from_library(PyObject *globals)
{
    PyObject *name, *module;
    if (globals == NULL || !PyDict_CheckExact(globals))
        return false;
    name = PyDict_GetItemString(globals, "__name__");
    if (name == NULL || !PyUnicode_CheckExact(name))
        return false;
    module = PyDict_GetItemWithError(imports.loaded, name);
    return module != NULL && PyModule_Check(module) && PyModule_GetDict(module) == globals;
}

void sbx_refuse(PyObject *name)
{
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear(); /* a name with a lone surrogate */
    if (*sbx_refused == '\0')
        snprintf(sbx_refused, sizeof sbx_refused, "%s", text && *text ? text : "?");
}

/* What `typing` and `re` remember is found again by equality: 1 for True, 8.0 for 8. */
void sbx_forget_caches(void)
{
    if (imports.has_caches)
        Py_XDECREF(PyObject_CallNoArgs(imports.caches));
    PyErr_Clear();
}

static void note_caches(PyObject *name)
{
    if (PyUnicode_CompareWithASCIIString(name, "typing") == 0 ||
        PyUnicode_CompareWithASCIIString(name, "re") == 0)
        imports.has_caches = true; /* written only then: the page is the zygote's as long */
}

static PyObject *refuse(PyObject *name)
{
    sbx_refuse(name);
    return PyErr_Format(PyExc_ImportError, "import of %R is not allowed here", name);
}

/* Another module of the library, or one that the interpreter loads for itself. */
static PyObject *import_for_library(PyObject *name, PyObject *args, PyObject *kwargs)
{
    PyObject *module = PyObject_Call(imports.original, args, kwargs);
    if (module == NULL && PyErr_ExceptionMatches(PyExc_ImportError)) {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        sbx_refuse(name);
        PyErr_Restore(type, error, traceback);
    }
    return module;
}

/* The C API imports with an empty list of names, and takes the module from sys.modules. */
static bool is_from_interpreter(PyObject *name, PyObject *from, int level)
{
    return level == 0 && from != NULL && PyList_CheckExact(from) && PyList_GET_SIZE(from) == 0 &&
           PyDict_Contains(imports.internal, name) == 1;
}

PyObject *sbx_import(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", "globals", "locals", "fromlist", "level", NULL};
    PyObject *name, *globals = NULL, *locals = NULL, *from = NULL, *module, *top;
    Py_ssize_t dot;
    int level = 0;

    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|OOOi:__import__", names, &name, &globals,
                                     &locals, &from, &level))
        return NULL;
    if (is_from_library(globals))
        return import_for_library(name, args, kwargs);
    if (is_from_interpreter(name, from, level))
        return Py_XNewRef(PyDict_GetItemWithError(imports.internal, name));
    module = level ? NULL : PyDict_GetItemWithError(imports.allowed, name);
    if (module == NULL)
        return PyErr_Occurred() ? NULL : refuse(name);
    note_caches(name);
    if (from != NULL && from != Py_None && PyObject_IsTrue(from) > 0)
        return Py_NewRef(module);
    dot = PyUnicode_FindChar(name, '.', 0, PyUnicode_GET_LENGTH(name), 1);
    if (dot < 0)
        return Py_NewRef(module);
    if ((top = PyUnicode_Substring(name, 0, dot)) == NULL)
        return NULL;
    module = PyDict_GetItemWithError(imports.allowed, top);
    Py_DECREF(top);
    return module ? Py_NewRef(module) : refuse(name);
}

/* ---- Guarded calls ---------------------------------------------------------------------------- */

struct guarded {
    PyObject_HEAD
    PyObject *name, *call;
};

static PyObject *guarded_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct guarded *guarded = (struct guarded *)self;
    sbx_refuse(guarded->name);
    return PyObject_Call(guarded->call, args, kwargs);
}

static PyObject *guarded_name(PyObject *self, void *closure)
{
    PyObject *name = ((struct guarded *)self)->name;
    Py_ssize_t length = PyUnicode_GET_LENGTH(name);
    Py_ssize_t dot = PyUnicode_FindChar(name, '.', 0, length, -1);
    (void)closure;
    return PyUnicode_Substring(name, dot + 1, length);
}

static PyObject *guarded_repr(PyObject *self)
{
    PyObject *name = guarded_name(self, NULL), *text;
    text = name ? PyUnicode_FromFormat("<built-in function %U>", name) : NULL;
    Py_XDECREF(name);
    return text;
}

static PyGetSetDef guarded_attributes[] = {{"__name__", guarded_name, NULL, NULL, NULL},
                                           {"__qualname__", guarded_name, NULL, NULL, NULL},
                                           {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject guarded_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "builtin_function_or_method",
    .tp_basicsize = sizeof(struct guarded),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_call = guarded_call,
    .tp_repr = guarded_repr,
    .tp_getset = guarded_attributes,
};

PyObject *sbx_guard(PyObject *name, PyObject *call)
{
    struct guarded *guarded;
    if (PyType_Ready(&guarded_type) < 0)
        return NULL;
    if ((guarded = PyObject_New(struct guarded, &guarded_type)) == NULL)
        return NULL;
    guarded->name = Py_NewRef(name);
    guarded->call = Py_NewRef(call);
    return (PyObject *)guarded;
}
