/* Canonical bytes of plain values: written by a child, compared and decoded by the client.
 *
 *   N T F                        None, True, False
 *   i  int64                     an int of 64 bits
 *   I  uint32 n, n characters    a longer int, as hexadecimal text "-0x1f..."
 *   f  8 bytes                   a float; no NaN, no infinity
 *   c  16 bytes                  a complex: real, imaginary
 *   s  uint32 n, n bytes         a str in UTF-8, lone surrogates passed
 *   b  uint32 n, n bytes         a bytes
 *   t l S d  uint32 n, n values  a tuple, list, set; a dict with 2n values
 *
 * Two values are the same value, type by type, exactly if their bytes are equal: elements of a set
 * are sorted by their bytes, a dict keeps its order (its text shows it), -0.0 is not 0.0. Only
 * exact built-in types are written, and no code of the program is called on the way.
 *
 * Bytes may say anything, for a child may have forged them, and the client decodes them with its
 * interpreter locked. So they are measured before the first object is made: nodes, depth, memory;
 * and the keys of a dict or set before the first is put in, for keys can be chosen so that each is
 * looked for in every place where another lies already. What is over a limit is SBX_TOO_LARGE, whether
 * a program came to it by honest means or not.
 */
#include "sandbox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* More digits than this could not be written as text: sys.int_info.default_max_str_digits. */
#define INT_BITS_MAX 14280

static bool put(struct sbx_writer *w, const void *bytes, size_t byte_count)
{
    if ((size_t)(w->end - w->at) < byte_count)
        return false;
    memcpy(w->at, bytes, byte_count);
    w->at += byte_count;
    return true;
}

static enum sbx_outcome put_sized(struct sbx_writer *w, char tag, const char *bytes,
                                  Py_ssize_t byte_count)
{
    uint32_t size = (uint32_t)byte_count;
    if (byte_count > w->end - w->at)
        return SBX_TOO_LARGE;
    return put(w, &tag, 1) && put(w, &size, 4) && put(w, bytes, size) ? SBX_OK : SBX_TOO_LARGE;
}

static enum sbx_outcome put_doubles(struct sbx_writer *w, char tag, const double *values,
                                    size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i])) {
            w->unsupported = isnan(values[i]) ? "nan" : "inf";
            return SBX_UNSUPPORTED_VALUE;
        }
    return put(w, &tag, 1) && put(w, values, count * sizeof *values) ? SBX_OK : SBX_TOO_LARGE;
}

static enum sbx_outcome encode_long_int(PyObject *value, struct sbx_writer *w)
{
    PyObject *text = NULL;
    Py_ssize_t byte_count;
    const char *bytes;
    enum sbx_outcome outcome = SBX_MEMORY;

    if ((text = PyNumber_ToBase(value, 16)) == NULL)
        goto done;
    if ((bytes = PyUnicode_AsUTF8AndSize(text, &byte_count)) == NULL)
        goto done;
    outcome = byte_count > INT_BITS_MAX / 4 + 3 ? SBX_TOO_LARGE
                                                : put_sized(w, 'I', bytes, byte_count);
done:
    PyErr_Clear();
    Py_XDECREF(text);
    return outcome;
}

static enum sbx_outcome encode_int(PyObject *value, struct sbx_writer *w)
{
    int overflow;
    int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow)
        return encode_long_int(value, w);
    return put(w, "i", 1) && put(w, &number, sizeof number) ? SBX_OK : SBX_TOO_LARGE;
}

static enum sbx_outcome encode_str(PyObject *value, struct sbx_writer *w)
{
    PyObject *encoded;
    Py_ssize_t byte_count;
    const char *bytes = PyUnicode_AsUTF8AndSize(value, &byte_count);
    enum sbx_outcome outcome;

    if (bytes != NULL)
        return put_sized(w, 's', bytes, byte_count);
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        return SBX_MEMORY;
    }
    PyErr_Clear();
    encoded = PyUnicode_AsEncodedString(value, "utf-8", "surrogatepass");
    if (encoded == NULL) {
        PyErr_Clear();
        return SBX_MEMORY;
    }
    outcome = put_sized(w, 's', PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded));
    Py_DECREF(encoded);
    return outcome;
}

static enum sbx_outcome encode_sequence(PyObject *value, struct sbx_writer *w, bool is_list)
{
    uint32_t count = (uint32_t)(is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value));
    if (!put(w, is_list ? "l" : "t", 1) || !put(w, &count, 4))
        return SBX_TOO_LARGE;
    for (uint32_t i = 0; i < count; i++) {
        PyObject *item = is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i);
        enum sbx_outcome outcome = sbx_encode(item, w);
        if (outcome != SBX_OK)
            return outcome;
    }
    return SBX_OK;
}

static enum sbx_outcome encode_dict(PyObject *value, struct sbx_writer *w)
{
    uint32_t count = (uint32_t)PyDict_GET_SIZE(value);
    Py_ssize_t position = 0;
    PyObject *key, *item;

    if (!put(w, "d", 1) || !put(w, &count, 4))
        return SBX_TOO_LARGE;
    while (PyDict_Next(value, &position, &key, &item)) {
        enum sbx_outcome outcome = sbx_encode(key, w);
        if (outcome == SBX_OK)
            outcome = sbx_encode(item, w);
        if (outcome != SBX_OK)
            return outcome;
    }
    return SBX_OK;
}

struct span {
    const unsigned char *start;
    size_t byte_count;
};

static int compare_spans(const void *left, const void *right)
{
    const struct span *a = left, *b = right;
    size_t shorter = a->byte_count < b->byte_count ? a->byte_count : b->byte_count;
    int order = memcmp(a->start, b->start, shorter);
    return order ? order : (a->byte_count > b->byte_count) - (a->byte_count < b->byte_count);
}

/* Puts the elements, which were written in the set's own order, into the order of their bytes. */
static enum sbx_outcome sort_elements(struct sbx_writer *w, unsigned char *start,
                                      struct span *spans, size_t count)
{
    size_t total = (size_t)(w->at - start);
    unsigned char *copy = malloc(total ? total : 1), *at = start;
    if (copy == NULL)
        return SBX_MEMORY;
    memcpy(copy, start, total);
    qsort(spans, count, sizeof *spans, compare_spans);
    for (size_t i = 0; i < count; i++) {
        memcpy(at, copy + (spans[i].start - start), spans[i].byte_count);
        at += spans[i].byte_count;
    }
    free(copy);
    return SBX_OK;
}

static enum sbx_outcome encode_set(PyObject *value, struct sbx_writer *w)
{
    uint32_t count = (uint32_t)PySet_GET_SIZE(value);
    struct span *spans = NULL;
    PyObject *items = NULL;
    unsigned char *start;
    enum sbx_outcome outcome = SBX_TOO_LARGE;

    if (!put(w, "S", 1) || !put(w, &count, 4))
        goto done;
    if (count > (size_t)(w->end - w->at)) /* an element takes a byte at least */
        goto done;
    start = w->at;
    outcome = SBX_MEMORY;
    /* PySequence_List of an exact set runs no code of the program. */
    if ((spans = malloc((count + 1) * sizeof *spans)) == NULL)
        goto done;
    if ((items = PySequence_List(value)) == NULL)
        goto done;
    for (uint32_t i = 0; i < count; i++) {
        spans[i].start = w->at;
        outcome = sbx_encode(PyList_GET_ITEM(items, i), w);
        if (outcome != SBX_OK)
            goto done;
        spans[i].byte_count = (size_t)(w->at - spans[i].start);
    }
    outcome = sort_elements(w, start, spans, count);
done:
    PyErr_Clear();
    Py_XDECREF(items);
    free(spans);
    return outcome;
}

/* A built-in type by its own name; any other may call itself what it likes. */
static const char *type_name(PyTypeObject *type)
{
    return type->tp_flags & Py_TPFLAGS_HEAPTYPE ? "object" : type->tp_name;
}

static enum sbx_outcome encode_container(PyObject *value, struct sbx_writer *w)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyList_Type)
        return encode_sequence(value, w, true);
    if (type == &PyTuple_Type)
        return encode_sequence(value, w, false);
    if (type == &PyDict_Type)
        return encode_dict(value, w);
    if (type == &PySet_Type)
        return encode_set(value, w);
    w->unsupported = type_name(type);
    return SBX_UNSUPPORTED_VALUE;
}

enum sbx_outcome sbx_encode(PyObject *value, struct sbx_writer *w)
{
    PyTypeObject *type = Py_TYPE(value);
    enum sbx_outcome outcome;

    if (w->nodes_left == 0)
        return SBX_TOO_LARGE;
    w->nodes_left--;
    if (value == Py_None)
        return put(w, "N", 1) ? SBX_OK : SBX_TOO_LARGE;
    if (type == &PyBool_Type)
        return put(w, value == Py_True ? "T" : "F", 1) ? SBX_OK : SBX_TOO_LARGE;
    if (type == &PyLong_Type)
        return encode_int(value, w);
    if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        return put_doubles(w, 'f', &number, 1);
    }
    if (type == &PyComplex_Type) {
        Py_complex number = PyComplex_AsCComplex(value);
        return put_doubles(w, 'c', (double[]){number.real, number.imag}, 2);
    }
    if (type == &PyUnicode_Type)
        return encode_str(value, w);
    if (type == &PyBytes_Type)
        return put_sized(w, 'b', PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (w->depth_left == 0) {
        w->unsupported = "too deeply nested";
        return SBX_UNSUPPORTED_VALUE;
    }
    w->depth_left--;
    outcome = encode_container(value, w);
    w->depth_left++;
    return outcome;
}

/* ---- Decoding: the bytes may be anything ------------------------------------------------------ */

struct reader {
    const unsigned char *at, *end;
    struct sbx_bounds left;
    size_t made; /* values so far */
};

static PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "not the bytes of a value");
    return NULL;
}

static bool too_large(const char *why)
{
    PyErr_SetString(PyExc_OverflowError, why);
    return false;
}

static bool take(struct reader *r, void *into, size_t byte_count)
{
    if ((size_t)(r->end - r->at) < byte_count) {
        malformed();
        return false;
    }
    memcpy(into, r->at, byte_count);
    r->at += byte_count;
    return true;
}

/* ---- Measuring: what the bytes will take, without an object ----------------------------------- */

/* Bytes of CPython's objects on 64 bits, header of the collector included, rounded up. */
enum {
    NUMBER_COST = 32,
    TEXT_COST = 64,
    SEQUENCE_COST = 72,
    ITEM_COST = 8,
    TABLE_COST = 232,      /* of a set, its first table included; of a dict with one of 8 places */
    EMPTY_DICT_COST = 80,
    SET_PLACE_COST = 16,
    DICT_ENTRY_COST = 24,  /* of which there are two for three places */
    DICT_INDEX_COST = 4,
};

/* Places of the table that comes after one which `used` entries have filled: setobject.c,
 * dictobject.c. */
static size_t grown(size_t used, bool is_set)
{
    size_t size = 8, least = is_set ? used * (used > 50000 ? 2 : 4) + 1 : used * 3;
    while (size < least)
        size <<= 1;
    return size;
}

/* Entries at which a table of so many places grows. */
static size_t filling(size_t size, bool is_set)
{
    return is_set ? ((size - 1) * 3 + 4) / 5 : (size << 1) / 3;
}

static size_t table_cost(size_t count, bool is_set)
{
    size_t size = 8;
    if (count == 0 && !is_set)
        return EMPTY_DICT_COST;
    /* A set grows when it is full, a dict when the next entry comes. */
    while (filling(size, is_set) < count + is_set)
        size = grown(filling(size, is_set), is_set);
    if (size == 8)
        return TABLE_COST;
    return TABLE_COST + (is_set ? size * SET_PLACE_COST
                                : filling(size, false) * DICT_ENTRY_COST + size * DICT_INDEX_COST);
}

static bool charge(struct reader *r, size_t byte_count)
{
    if (byte_count > r->left.memory_bytes)
        return too_large("memory");
    r->left.memory_bytes -= byte_count;
    return true;
}

static bool skip_text(struct reader *r, char tag)
{
    uint32_t size;
    size_t width = 1;

    if (!take(r, &size, 4))
        return false;
    if (size > (size_t)(r->end - r->at)) {
        malformed();
        return false;
    }
    for (uint32_t i = 0; tag == 's' && width == 1 && i < size; i++)
        width = r->at[i] < 0x80 ? 1 : 4; /* one wide character makes all of them wide */
    r->at += size;
    return charge(r, (size > 1 ? TEXT_COST : 0) + width * size);
}

static bool skip_one(struct reader *r);

static bool skip_container(struct reader *r, char tag)
{
    bool is_table = tag == 'S' || tag == 'd';
    uint32_t count;
    size_t values;

    if (!take(r, &count, 4))
        return false;
    values = tag == 'd' ? 2 * (size_t)count : count;
    if (r->left.depth == 0 || values > (size_t)(r->end - r->at)) { /* each takes a byte at least */
        malformed();
        return false;
    }
    if (!charge(r, is_table ? table_cost(count, tag == 'S')
                            : SEQUENCE_COST + (size_t)count * ITEM_COST))
        return false;
    r->left.depth--;
    for (size_t i = 0; i < values; i++)
        if (!skip_one(r))
            return false;
    r->left.depth++;
    return true;
}

static bool skip_one(struct reader *r)
{
    char tag;
    unsigned char number[16];

    if (!take(r, &tag, 1))
        return false;
    if (r->left.nodes == 0)
        return too_large("nodes");
    r->left.nodes--;
    switch (tag) {
    case 'N':
    case 'T':
    case 'F':
        return true;
    case 'i':
    case 'f':
    case 'c':
        return take(r, number, tag == 'c' ? 16 : 8) && charge(r, NUMBER_COST);
    case 'I':
    case 's':
    case 'b':
        return skip_text(r, tag);
    case 't':
    case 'l':
    case 'S':
    case 'd':
        return skip_container(r, tag);
    default:
        malformed();
        return false;
    }
}

/* ---- Keys ------------------------------------------------------------------------------------- */

struct entry {
    PyObject *key, *item; /* no item: an element of a set */
    Py_hash_t hash;
    size_t weight; /* what it takes to compare the key with another */
};

/* A table such as CPython's: what it holds by its places, 0 for nothing, else number + 1. */
struct table {
    uint32_t *places;
    size_t mask;
    bool is_set;
};

/* So many places from the first on does a set look at in their order (setobject.c). */
enum { SET_NEIGHBOURS = 9 };

/* Puts entry `number` in as CPython does: PERTURB_SHIFT and the recurrence of dictobject.c. Returns what
 * that costs, in places looked at and keys compared. */
static size_t place(struct table *t, const struct entry *entries, uint32_t number)
{
    Py_hash_t hash = entries[number].hash;
    size_t perturb = (size_t)hash, at = perturb & t->mask, cost = 0;

    for (;;) {
        size_t neighbours = t->is_set && at + SET_NEIGHBOURS <= t->mask ? SET_NEIGHBOURS : 0;
        for (size_t i = at; i <= at + neighbours; i++) {
            uint32_t there = t->places[i];
            cost++;
            if (there == 0) {
                t->places[i] = number + 1;
                return cost;
            }
            if (entries[there - 1].hash == hash)
                cost += entries[number].weight;
        }
        perturb >>= 5;
        at = (at * 5 + perturb + 1) & t->mask;
    }
}

/* Plays through what putting the entries in will cost, and takes it from what is left; false with
 * OverflowError where that is too little. */
static bool afford_entries(struct reader *r, const struct entry *entries, uint32_t count, bool is_set)
{
    uint32_t first_places[8] = {0}, *more_places = NULL, done = 0;
    struct table t = {first_places, 7, is_set};
    bool affords = true;

    while (affords && done < count) {
        size_t cost = place(&t, entries, done++);
        if (done == filling(t.mask + 1, is_set) && done < count) {
            size_t size = grown(done, is_set);
            free(more_places);
            if ((more_places = calloc(size, sizeof *more_places)) == NULL) {
                PyErr_NoMemory();
                return false;
            }
            t = (struct table){more_places, size - 1, is_set};
            for (uint32_t i = 0; i < done; i++)
                cost += place(&t, entries, i);
        }
        affords = cost <= r->left.probes || too_large("hashes that collide");
        r->left.probes -= affords ? cost : 0;
    }
    free(more_places);
    return affords;
}

/* ---- Making the values ------------------------------------------------------------------------ */

static PyObject *decode_one(struct reader *r);

static PyObject *decode_long_int(const char *bytes, uint32_t byte_count)
{
    char text[INT_BITS_MAX / 4 + 8];
    const char *digits = bytes;
    uint32_t left = byte_count;

    if (byte_count >= sizeof text)
        return malformed();
    if (left && *digits == '-')
        digits++, left--;
    if (left < 3 || digits[0] != '0' || digits[1] != 'x')
        return malformed();
    for (uint32_t i = 2; i < left; i++)
        if (strchr("0123456789abcdef", digits[i]) == NULL || digits[i] == '\0')
            return malformed();
    memcpy(text, bytes, byte_count);
    text[byte_count] = '\0';
    return PyLong_FromString(text, NULL, 16);
}

/* The code point at *at, which moves on, a lone surrogate included; -1 for what is no UTF-8. */
static int32_t take_code_point(const unsigned char **at, const unsigned char *end)
{
    static const int32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = *at;
    int32_t point = *bytes;
    int length = point < 0x80 ? 1 : point >= 0xf0 ? 4 : point >= 0xe0 ? 3 : point >= 0xc0 ? 2 : 0;

    if (length == 0 || end - bytes < length || point >= 0xf8)
        return -1;
    if (length > 1)
        point &= 0x7f >> length;
    for (int i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return -1;
        point = point << 6 | (bytes[i] & 0x3f);
    }
    if (point < least[length] || point > 0x10ffff)
        return -1;
    *at += length;
    return point;
}

/* Python's own handler of surrogates is called for each of them, which takes its time. */
static PyObject *decode_surrogates(const unsigned char *at, size_t byte_count)
{
    const unsigned char *end = at + byte_count;
    Py_UCS4 *points = malloc(byte_count * sizeof *points);
    Py_ssize_t count = 0;
    int32_t point = 0;
    PyObject *value = NULL;

    if (points == NULL)
        return PyErr_NoMemory();
    while (at < end && (point = take_code_point(&at, end)) >= 0)
        points[count++] = (Py_UCS4)point;
    value = point < 0 ? malformed() : PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, points, count);
    free(points);
    return value;
}

static bool has_surrogate(const unsigned char *at, size_t byte_count)
{
    const unsigned char *end = at + byte_count;
    while ((at = memchr(at, 0xed, (size_t)(end - at))) != NULL) {
        if (++at < end && *at >= 0xa0)
            return true;
    }
    return false;
}

static PyObject *decode_text(struct reader *r, char tag)
{
    uint32_t size;
    const unsigned char *bytes;
    PyObject *value;

    if (!take(r, &size, 4))
        return NULL;
    if (size > (size_t)(r->end - r->at))
        return malformed();
    bytes = r->at;
    r->at += size;
    if (tag == 'I')
        return decode_long_int((const char *)bytes, size);
    if (tag == 'b')
        return PyBytes_FromStringAndSize((const char *)bytes, size);
    if (has_surrogate(bytes, size))
        return decode_surrogates(bytes, size);
    value = PyUnicode_DecodeUTF8((const char *)bytes, size, NULL);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_UnicodeError)) {
        PyErr_Clear();
        return malformed();
    }
    return value;
}

static PyObject *decode_sequence(struct reader *r, uint32_t count, bool is_list)
{
    PyObject *value = is_list ? PyList_New(count) : PyTuple_New(count);
    for (uint32_t i = 0; value != NULL && i < count; i++) {
        PyObject *item = decode_one(r);
        if (item == NULL)
            Py_CLEAR(value);
        else if (is_list)
            PyList_SET_ITEM(value, i, item);
        else
            PyTuple_SET_ITEM(value, i, item);
    }
    return value;
}

static bool decode_entry(struct reader *r, struct entry *entry, bool is_set)
{
    const unsigned char *start = r->at;
    size_t made = r->made;

    if ((entry->key = decode_one(r)) == NULL)
        return false;
    entry->weight = 4 * (r->made - made) + (size_t)(r->at - start) / 16;
    if ((entry->hash = PyObject_Hash(entry->key)) == -1)
        return false;
    return is_set || (entry->item = decode_one(r)) != NULL;
}

static int add_entry(PyObject *value, const struct entry *entry, bool is_set)
{
    return is_set ? PySet_Add(value, entry->key) : PyDict_SetItem(value, entry->key, entry->item);
}

/* All keys are seen before the first is added. */
static int add_entries(struct reader *r, PyObject *value, uint32_t count, bool is_set)
{
    struct entry *entries = calloc(count ? count : 1, sizeof *entries);
    uint32_t whole = 0, added = 0;

    if (entries == NULL)
        PyErr_NoMemory();
    while (entries != NULL && whole < count && decode_entry(r, &entries[whole], is_set))
        whole++;
    if (entries != NULL && whole == count && afford_entries(r, entries, count, is_set))
        while (added < count && add_entry(value, &entries[added], is_set) == 0)
            added++;
    for (uint32_t i = 0; entries != NULL && i < count; i++) {
        Py_XDECREF(entries[i].key);
        Py_XDECREF(entries[i].item);
    }
    free(entries);
    return added == count && entries != NULL ? 0 : -1;
}

static PyObject *decode_table(struct reader *r, uint32_t count, bool is_set)
{
    PyObject *value = is_set ? PySet_New(NULL) : PyDict_New();

    if (value == NULL)
        return NULL;
    if (add_entries(r, value, count, is_set) < 0) {
        Py_DECREF(value);
        if (PyErr_ExceptionMatches(PyExc_TypeError)) { /* not hashable */
            PyErr_Clear();
            malformed();
        }
        return NULL;
    }
    if ((is_set ? PySet_GET_SIZE(value) : PyDict_GET_SIZE(value)) != (Py_ssize_t)count) {
        Py_DECREF(value);
        return malformed();
    }
    return value;
}

/* The bytes have been measured. */
static PyObject *decode_container(struct reader *r, char tag)
{
    uint32_t count;

    if (!take(r, &count, 4))
        return NULL;
    return tag == 'l' || tag == 't' ? decode_sequence(r, count, tag == 'l')
                                    : decode_table(r, count, tag == 'S');
}

static PyObject *decode_number(struct reader *r, char tag)
{
    int64_t number;
    double parts[2];

    if (tag == 'i')
        return take(r, &number, sizeof number) ? PyLong_FromLongLong(number) : NULL;
    if (!take(r, parts, tag == 'f' ? 8 : 16))
        return NULL;
    if (!isfinite(parts[0]) || (tag == 'c' && !isfinite(parts[1])))
        return malformed();
    return tag == 'f' ? PyFloat_FromDouble(parts[0]) : PyComplex_FromDoubles(parts[0], parts[1]);
}

static PyObject *decode_one(struct reader *r)
{
    char tag;
    if (!take(r, &tag, 1))
        return NULL;
    r->made++;
    switch (tag) {
    case 'N':
        Py_RETURN_NONE;
    case 'T':
        Py_RETURN_TRUE;
    case 'F':
        Py_RETURN_FALSE;
    case 'i':
    case 'f':
    case 'c':
        return decode_number(r, tag);
    case 'I':
    case 's':
    case 'b':
        return decode_text(r, tag);
    case 't':
    case 'l':
    case 'S':
    case 'd':
        return decode_container(r, tag);
    default:
        return malformed();
    }
}

PyObject *sbx_decode(const unsigned char *bytes, size_t byte_count, const struct sbx_bounds *bounds)
{
    struct reader r = {bytes, bytes + byte_count, *bounds, 0};

    if (!skip_one(&r))
        return NULL;
    if (r.at != r.end)
        return malformed();
    r.at = bytes;
    return decode_one(&r);
}
