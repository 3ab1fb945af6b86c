/* Notes what no look at the code can tell: when a program makes a text that may show an address, and
 * when it makes a class.
 *
 * The default repr of an object, that of a function, a lock, a capsule, ... may come to stand in a
 * result in part, a digit of it or its parity, and then two runs agree by chance; nothing in the code
 * tells str(number) from str(map(int, x)). Every repr in C is watched but those that are known to show
 * no address. A class whose methods have names put together at run time has the library do what the
 * program is not seen to do: write to attributes, look names up.
 */
#include "sandbox.h"

#include <string.h>

int sbx_may_differ;

#define TEN(X, d)                                                                                  \
    X(d##0) X(d##1) X(d##2) X(d##3) X(d##4) X(d##5) X(d##6) X(d##7) X(d##8) X(d##9)
#define REPRS(X)                                                                                   \
    TEN(X, 1) TEN(X, 2) TEN(X, 3) TEN(X, 4) TEN(X, 5) TEN(X, 6) TEN(X, 7) TEN(X, 8) TEN(X, 9)       \
    TEN(X, 10) TEN(X, 11) TEN(X, 12) TEN(X, 13) TEN(X, 14) TEN(X, 15) TEN(X, 16)
#define COUNT_ONE(n) +1
enum { REPR_COUNT = REPRS(COUNT_ONE), FIRST = 10 };

static reprfunc originals[REPR_COUNT];
static size_t original_count;

/* Written once: the page may be shared with the zygote until then. */
#define DEFINE(n)                                                                                  \
    static PyObject *repr_##n(PyObject *self)                                                      \
    {                                                                                              \
        if (!sbx_may_differ)                                                               \
            sbx_may_differ = 1;                                                            \
        return originals[n - FIRST](self);                                                         \
    }
REPRS(DEFINE)

#define ADDRESS(n) repr_##n,
static const reprfunc watched[REPR_COUNT] = {REPRS(ADDRESS)};

/* Of these, and of what they contain, the text is made of contents; so is that of every class with a
 * __repr__ in Python, which ModuleSpec stands for. */
static const char *const plain_types[] = {
    "int", "bool", "float", "complex", "str", "bytes", "bytearray", "list", "tuple", "dict", "set",
    "frozenset", "range", "slice", "NoneType", "ellipsis", "NotImplementedType", "type", "module",
    "mappingproxy", "dict_keys", "dict_values", "dict_items", "collections.OrderedDict",
    "odict_keys", "odict_values", "odict_items", "collections.deque", "collections.defaultdict",
    "decimal.Decimal", "decimal.Context", "re.Pattern", "re.Match", "array.array",
    "itertools.count", "itertools.repeat", "types.GenericAlias", "types.UnionType",
    "types.SimpleNamespace", "sys.version_info", "BaseException", "BaseExceptionGroup", "KeyError",
    "OSError", "ImportError", "typing.TypeVar", "getset_descriptor", "member_descriptor",
    "method_descriptor", "wrapper_descriptor", "classmethod_descriptor", "functools.partial",
    "method", "staticmethod", "classmethod", "operator.itemgetter",
    "operator.attrgetter", "operator.methodcaller", "ModuleSpec",
};
enum { PLAIN_COUNT = sizeof plain_types / sizeof *plain_types };

static reprfunc plain[PLAIN_COUNT];
static size_t plain_count;

static bool is_plain(reprfunc repr)
{
    for (size_t i = 0; i < plain_count; i++)
        if (plain[i] == repr)
            return true;
    return false;
}

/* NULL with an exception where there are more than were thought of. */
static reprfunc watched_for(reprfunc original)
{
    if (is_plain(original))
        return original;
    for (size_t i = 0; i < original_count; i++)
        if (originals[i] == original || watched[i] == original)
            return watched[i];
    if (original_count == REPR_COUNT) {
        PyErr_SetString(PyExc_SystemError, "more reprs than can be watched");
        return NULL;
    }
    originals[original_count] = original;
    return watched[original_count++];
}

static int note_plain(PyTypeObject *type)
{
    bool has_own = type->tp_repr != NULL && type->tp_repr != PyBaseObject_Type.tp_repr;
    for (size_t i = 0; has_own && i < PLAIN_COUNT; i++)
        if (strcmp(type->tp_name, plain_types[i]) == 0 && !is_plain(type->tp_repr))
            plain[plain_count++] = type->tp_repr;
    return 0;
}

/* A class made later takes its slot from the wrapper that stands for __repr__ in a base. */
static int watch_slot(PyTypeObject *type)
{
    PyObject *attributes = PyObject_GetAttrString((PyObject *)type, "__dict__"), *method;
    reprfunc function = NULL;
    int failed = 0;

    if (attributes == NULL)
        return -1;
    method = PyMapping_GetItemString(attributes, "__repr__");
    PyErr_Clear(); /* it inherits */
    if (method != NULL && Py_IS_TYPE(method, &PyWrapperDescr_Type)) {
        PyWrapperDescrObject *wrapper = (PyWrapperDescrObject *)method;
        memcpy(&function, &wrapper->d_wrapped, sizeof function);
        if ((function = watched_for(function)) != NULL)
            memcpy(&wrapper->d_wrapped, &function, sizeof function);
        failed = function == NULL;
    }
    if (!failed && type->tp_repr != NULL) {
        function = watched_for(type->tp_repr);
        failed = function == NULL;
        if (!failed)
            type->tp_repr = function;
    }
    Py_XDECREF(method);
    Py_DECREF(attributes);
    return failed ? -1 : 0;
}

/* Calls for a class and all below it; one with several bases comes more than once. */
static int walk_types(PyTypeObject *type, int (*call)(PyTypeObject *))
{
    PyObject *below;
    int failed = call(type);

    if (failed < 0)
        return -1;
    below = PyObject_CallMethod((PyObject *)&PyType_Type, "__subclasses__", "O", type);
    for (Py_ssize_t i = 0; below != NULL && !failed && i < PyList_GET_SIZE(below); i++)
        failed = walk_types((PyTypeObject *)PyList_GET_ITEM(below, i), call);
    Py_XDECREF(below);
    return below == NULL ? -1 : failed;
}

static newfunc new_type;

static PyObject *watched_new_type(PyTypeObject *metatype, PyObject *args, PyObject *kwargs)
{
    if (!sbx_may_differ)
        sbx_may_differ = 1;
    return new_type(metatype, args, kwargs);
}

int sbx_watch_identity(void)
{
    new_type = PyType_Type.tp_new;
    PyType_Type.tp_new = watched_new_type;
    if (walk_types(&PyBaseObject_Type, note_plain) < 0)
        return -1;
    return walk_types(&PyBaseObject_Type, watch_slot);
}
