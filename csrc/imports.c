/* The import statement inside a child: a look into a table, never a search.
 *
 * Every allowed module was loaded by the zygote. Another name, whether the program writes it or
 * builds it at run time, is refused in the same way everywhere, and the refusal is the outcome of
 * that input even if the program catches the ImportError.
 */
#include "sandbox.h"

static struct {
    PyObject *allowed, *loaded, *original;
} imports;

int sbx_imports_set(PyObject *allowed, PyObject *loaded, PyObject *original)
{
    imports.allowed = Py_NewRef(allowed);
    imports.loaded = Py_NewRef(loaded);
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

static PyObject *refuse(PyObject *name)
{
    sbx_import_was_refused = 1;
    return PyErr_Format(PyExc_ImportError, "import of %R is not allowed here", name);
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
        return PyObject_Call(imports.original, args, kwargs);
    module = level ? NULL : PyDict_GetItemWithError(imports.allowed, name);
    if (module == NULL)
        return PyErr_Occurred() ? NULL : refuse(name);
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
