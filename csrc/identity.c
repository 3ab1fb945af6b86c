/* Notes when a program makes a text that shows an address: the default repr of an object, a function,
 * a generator, ... Such a text may come to stand in a result in part, a digit of it or its parity, and
 * then two runs agree by chance. No look at the code tells str(number) from str(map(int, x)).
 */
#include "sandbox.h"

#include <string.h>

int sbx_identity_was_shown;

#define REPRS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define COUNT_ONE(n) +1
enum { REPR_COUNT = REPRS(COUNT_ONE) };

static reprfunc originals[REPR_COUNT];

/* Written once: the page may be shared with the zygote until then. */
#define DEFINE(n)                                                                                  \
    static PyObject *repr_##n(PyObject *self)                                                      \
    {                                                                                              \
        if (!sbx_identity_was_shown)                                                               \
            sbx_identity_was_shown = 1;                                                            \
        return originals[n](self);                                                                 \
    }
REPRS(DEFINE)

#define ADDRESS(n) repr_##n,
static const reprfunc watched[REPR_COUNT] = {REPRS(ADDRESS)};

static reprfunc watched_for(reprfunc original)
{
    for (int i = 0; i < REPR_COUNT; i++)
        if (original != NULL && originals[i] == original)
            return watched[i];
    return original;
}

/* A class made later takes its slot from the wrapper that stands for __repr__ in a base. */
static int watch_slot(PyTypeObject *type)
{
    PyObject *attributes = PyObject_GetAttrString((PyObject *)type, "__dict__"), *method;
    if (attributes == NULL)
        return -1;
    method = PyMapping_GetItemString(attributes, "__repr__");
    PyErr_Clear(); /* it inherits */
    if (method != NULL && Py_IS_TYPE(method, &PyWrapperDescr_Type)) {
        PyWrapperDescrObject *wrapper = (PyWrapperDescrObject *)method;
        reprfunc function;
        memcpy(&function, &wrapper->d_wrapped, sizeof function);
        function = watched_for(function);
        memcpy(&wrapper->d_wrapped, &function, sizeof function);
    }
    type->tp_repr = watched_for(type->tp_repr);
    Py_XDECREF(method);
    Py_DECREF(attributes);
    return 0;
}

/* A class and all below it; one with several bases comes more than once. */
static int watch_types(PyTypeObject *type)
{
    PyObject *below;
    int failed = watch_slot(type);

    if (failed < 0)
        return -1;
    below = PyObject_CallMethod((PyObject *)&PyType_Type, "__subclasses__", "O", type);
    for (Py_ssize_t i = 0; below != NULL && !failed && i < PyList_GET_SIZE(below); i++)
        failed = watch_types((PyTypeObject *)PyList_GET_ITEM(below, i));
    Py_XDECREF(below);
    return below == NULL ? -1 : failed;
}

int sbx_watch_identity(void)
{
    /* The type of such a method has no name in the headers of every version. */
    PyObject *method = PyObject_GetAttrString(Py_None, "__repr__");
    const PyTypeObject *known[REPR_COUNT] = {
        &PyBaseObject_Type, &PyFunction_Type,   &PyCFunction_Type,
        &PyGen_Type,        &PyCoro_Type,       &PyAsyncGen_Type,
        &PyCode_Type,       &PyCell_Type,       &PyFrame_Type,
        &PyMemoryView_Type, &_PyWeakref_RefType, method ? Py_TYPE(method) : NULL,
    };
    if (method == NULL)
        return -1;
    Py_DECREF(method); /* its type is static */
    for (int i = 0; i < REPR_COUNT; i++)
        originals[i] = known[i]->tp_repr;
    return watch_types(&PyBaseObject_Type);
}
