/* The text of an argument list, "1, [2, 3], x='a'", as values. Literals only; nothing is compiled.
 *
 * Accepts what ast.literal_eval accepts inside "f(...)", except: parentheses around an operand of
 * a sign or of a complex sum, and `...`. A text that it does accept means what it means to Python.
 */
#include "sandbox.h"

#include <string.h>

struct parser {
    const char *at, *end;
    uint32_t depth_left;
};

static PyObject *parse_value(struct parser *p);

static PyObject *refuse(const char *why)
{
    PyErr_SetString(PyExc_SyntaxError, why);
    return NULL;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* A byte of a letter beyond ASCII counts: whether it is one is seen where a name is made. */
static bool is_word(char c)
{
    return (unsigned char)c >= 0x80 || is_digit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_quote(char c) { return c == '\'' || c == '"'; }

static char look(const struct parser *p, size_t ahead)
{
    return (size_t)(p->end - p->at) > ahead ? p->at[ahead] : '\0';
}

/* Blanks, line ends, joined lines, comments. */
static void skip_blanks(struct parser *p)
{
    while (p->at < p->end) {
        char c = *p->at;
        if (c == ' ' || c == '\t' || c == '\n' || c == '\f') {
            p->at++;
        } else if (c == '\\' && look(p, 1) == '\n') {
            p->at += 2;
        } else if (c == '#') {
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        } else {
            return;
        }
    }
}

static bool skip_char(struct parser *p, char c)
{
    skip_blanks(p);
    if (look(p, 0) != c)
        return false;
    p->at++;
    return true;
}

static size_t word_length(const struct parser *p)
{
    size_t length = 0;
    while (is_word(look(p, length)))
        length++;
    return length;
}

static bool skip_word(struct parser *p, const char *word)
{
    size_t length = strlen(word);
    if (word_length(p) != length || memcmp(p->at, word, length) != 0)
        return false;
    p->at += length;
    return true;
}

/* ---- Numbers ---------------------------------------------------------------------------------- */

#define NUMBER_CHARS_MAX 8192 /* more digits than an int may have */

/* Underscores stand between digits only, and are left out. */
static bool copy_digits(const char *from, size_t length, char *into)
{
    for (size_t i = 0; i < length; i++) {
        if (from[i] != '_')
            *into++ = from[i];
        else if (i == 0 || i + 1 == length || !is_digit(from[i - 1]) || !is_digit(from[i + 1]))
            return false;
    }
    *into = '\0';
    return true;
}

static PyObject *float_from(const char *from, size_t length)
{
    char text[NUMBER_CHARS_MAX + 1], *stop;
    double number;

    if (!copy_digits(from, length, text))
        return refuse("not a number");
    number = PyOS_string_to_double(text, &stop, NULL);
    if (number == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_MemoryError))
            return NULL;
        PyErr_Clear();
        return refuse("not a number");
    }
    return *stop == '\0' ? PyFloat_FromDouble(number) : refuse("not a number");
}

static PyObject *int_from(const char *from, size_t length)
{
    char text[NUMBER_CHARS_MAX + 1];
    PyObject *value;

    memcpy(text, from, length);
    text[length] = '\0';
    value = PyLong_FromString(text, NULL, 0);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear();
        return refuse("not a number");
    }
    return value;
}

static PyObject *imaginary_from(const char *from, size_t length)
{
    PyObject *part = float_from(from, length), *value;
    if (part == NULL)
        return NULL;
    value = PyComplex_FromDoubles(0.0, PyFloat_AS_DOUBLE(part));
    Py_DECREF(part);
    return value;
}

static size_t number_length(const struct parser *p)
{
    size_t length = 0;
    bool based = look(p, 0) == '0' && strchr("xXoObB", look(p, 1)) && look(p, 1);
    for (;; length++) {
        char c = look(p, length);
        char before = length ? look(p, length - 1) : '\0';
        bool exponent_sign = !based && (c == '+' || c == '-') && (before == 'e' || before == 'E');
        if (!is_word(c) && c != '.' && !exponent_sign)
            return length;
    }
}

/* An int, a float or an imaginary number without a sign. */
static PyObject *parse_number(struct parser *p)
{
    const char *from = p->at;
    size_t length = number_length(p);
    char last = length ? from[length - 1] : '\0';
    bool based = length > 1 && from[0] == '0' && strchr("xXoObB", from[1]);

    if (length == 0 || length > NUMBER_CHARS_MAX)
        return refuse("not a number");
    p->at += length;
    if (last == '_')
        return refuse("not a number");
    if (based)
        return int_from(from, length);
    if (last == 'j' || last == 'J')
        return imaginary_from(from, length - 1);
    for (size_t i = 0; i < length; i++) {
        if (from[i] == '.' || from[i] == 'e' || from[i] == 'E')
            return float_from(from, length);
        if (!is_digit(from[i]) && from[i] != '_')
            return refuse("not a number");
    }
    return int_from(from, length);
}

static bool number_starts(const struct parser *p)
{
    return is_digit(look(p, 0)) || (look(p, 0) == '.' && is_digit(look(p, 1)));
}

static PyObject *parse_operand(struct parser *p)
{
    skip_blanks(p);
    return number_starts(p) ? parse_number(p) : refuse("expected a number");
}

/* real + imaginary or real - imaginary; takes over `real`. */
static PyObject *parse_complex(struct parser *p, PyObject *real)
{
    bool minus = *p->at++ == '-';
    PyObject *imaginary = parse_operand(p), *sum = NULL;

    if (imaginary != NULL && (!PyComplex_CheckExact(imaginary) || PyComplex_CheckExact(real)))
        refuse("only a real and an imaginary number can be joined");
    else if (imaginary != NULL)
        sum = minus ? PyNumber_Subtract(real, imaginary) : PyNumber_Add(real, imaginary);
    Py_DECREF(real);
    Py_XDECREF(imaginary);
    if (sum == NULL && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        refuse("number too large");
    }
    return sum;
}

static PyObject *parse_signed(struct parser *p)
{
    bool minus = look(p, 0) == '-';
    PyObject *number, *value;

    if (minus || look(p, 0) == '+')
        p->at++;
    if ((number = parse_operand(p)) == NULL)
        return NULL;
    value = minus ? PyNumber_Negative(number) : Py_NewRef(number);
    Py_DECREF(number);
    if (value == NULL)
        return NULL;
    skip_blanks(p);
    return look(p, 0) == '+' || look(p, 0) == '-' ? parse_complex(p, value) : value;
}

/* ---- Strings ---------------------------------------------------------------------------------- */

struct string_part {
    const char *body;
    size_t byte_count;
    bool raw, is_bytes;
};

static bool read_prefix(struct parser *p, struct string_part *part)
{
    size_t length = 0;
    bool r = false, b = false, u = false;
    for (; !is_quote(look(p, length)); length++) {
        char c = look(p, length) | 0x20; /* to lower case */
        bool *seen = c == 'r' ? &r : c == 'b' ? &b : c == 'u' ? &u : NULL;
        if (seen == NULL || *seen || length == 2)
            return false;
        *seen = true;
    }
    if (u && length > 1)
        return false;
    p->at += length;
    part->raw = r;
    part->is_bytes = b;
    return true;
}

static bool read_body(struct parser *p, struct string_part *part)
{
    char quote = look(p, 0);
    bool triple = look(p, 1) == quote && look(p, 2) == quote;
    const char *at = p->at + (triple ? 3 : 1);

    part->body = at;
    for (; at < p->end; at++) {
        if (*at == '\\') {
            at++;
        } else if (*at == '\n' && !triple) {
            return false;
        } else if (*at == quote) {
            bool closed = !triple || (p->end - at >= 3 && at[1] == quote && at[2] == quote);
            if (closed) {
                part->byte_count = (size_t)(at - part->body);
                p->at = at + (triple ? 3 : 1);
                return true;
            }
        }
    }
    return false;
}

/* Characters beyond ASCII become \U escapes, for the decoder of escapes takes them for Latin-1. */
static PyObject *decode_escapes(const struct string_part *part)
{
    PyObject *text = PyUnicode_DecodeUTF8(part->body, (Py_ssize_t)part->byte_count, NULL);
    PyObject *value = NULL;
    Py_ssize_t length;
    char *escaped, *at;

    if (text == NULL)
        return NULL;
    if (PyUnicode_IS_ASCII(text)) {
        Py_DECREF(text);
        return PyUnicode_DecodeUnicodeEscape(part->body, (Py_ssize_t)part->byte_count, NULL);
    }
    length = PyUnicode_GET_LENGTH(text);
    if ((escaped = PyMem_Malloc((size_t)length * 10 + 1)) == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    at = escaped;
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_UCS4 c = PyUnicode_READ_CHAR(text, i);
        bool lone = c == '\\' && i + 1 < length && PyUnicode_READ_CHAR(text, i + 1) >= 128;
        if (c >= 128)
            at += sprintf(at, "\\U%08x", (unsigned)c);
        else if (lone) /* a backslash before such a character stands for itself */
            at += sprintf(at, "\\u005c");
        else
            *at++ = (char)c;
        if (c == '\\' && !lone && i + 1 < length) /* never split an escaped backslash */
            *at++ = (char)PyUnicode_READ_CHAR(text, ++i);
    }
    value = PyUnicode_DecodeUnicodeEscape(escaped, at - escaped, NULL);
    PyMem_Free(escaped);
done:
    Py_DECREF(text);
    return value;
}

static PyObject *decode_bytes_part(const struct string_part *part)
{
    for (size_t i = 0; i < part->byte_count; i++)
        if ((unsigned char)part->body[i] >= 128)
            return refuse("bytes hold ASCII characters only");
    if (part->raw)
        return PyBytes_FromStringAndSize(part->body, (Py_ssize_t)part->byte_count);
    return PyBytes_DecodeEscape(part->body, (Py_ssize_t)part->byte_count, NULL, 0, NULL);
}

static PyObject *decode_part(const struct string_part *part)
{
    PyObject *value;
    if (part->is_bytes)
        value = decode_bytes_part(part);
    else if (part->raw || memchr(part->body, '\\', part->byte_count) == NULL)
        value = PyUnicode_DecodeUTF8(part->body, (Py_ssize_t)part->byte_count, NULL);
    else
        value = decode_escapes(part);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_ValueError)) { /* UnicodeError is one */
        PyErr_Clear();
        refuse("not a string");
    }
    return value;
}

static bool string_starts(const struct parser *p)
{
    size_t length = 0;
    while (length < 2 && look(p, length) && strchr("rRbBuU", look(p, length)))
        length++;
    return is_quote(look(p, length));
}

/* Strings that stand side by side are one string. */
static PyObject *parse_strings(struct parser *p)
{
    PyObject *whole = NULL;
    for (; string_starts(p); skip_blanks(p)) {
        struct string_part part;
        PyObject *piece, *joined;
        if (!read_prefix(p, &part) || !read_body(p, &part)) {
            Py_XDECREF(whole);
            return refuse("a string is not closed");
        }
        piece = decode_part(&part);
        if (piece == NULL || whole == NULL) {
            Py_XDECREF(whole);
            if (piece == NULL)
                return NULL;
            whole = piece;
            continue;
        }
        if (Py_TYPE(piece) != Py_TYPE(whole))
            joined = refuse("bytes and text cannot be joined");
        else
            joined = PySequence_Concat(whole, piece);
        Py_DECREF(piece);
        Py_DECREF(whole);
        if ((whole = joined) == NULL)
            return NULL;
    }
    return whole;
}

/* ---- Containers ------------------------------------------------------------------------------- */

/* Values up to `close`; `commas` counts the commas behind them. */
static PyObject *parse_items(struct parser *p, char close, Py_ssize_t *commas)
{
    PyObject *items = PyList_New(0);
    *commas = 0;
    while (items != NULL && !skip_char(p, close)) {
        PyObject *item = NULL;
        if (PyList_GET_SIZE(items) > *commas)
            refuse("expected a comma");
        else
            item = parse_value(p);
        if (item == NULL || PyList_Append(items, item) < 0) {
            Py_XDECREF(item);
            Py_CLEAR(items);
            break;
        }
        Py_DECREF(item);
        *commas += skip_char(p, ',');
    }
    return items;
}

static PyObject *parse_list_or_tuple(struct parser *p, bool is_list)
{
    Py_ssize_t commas;
    PyObject *items = parse_items(p, is_list ? ']' : ')', &commas), *value;
    if (items == NULL || is_list)
        return items;
    if (PyList_GET_SIZE(items) == 1 && commas == 0)
        value = Py_NewRef(PyList_GET_ITEM(items, 0)); /* mere parentheses */
    else
        value = PyList_AsTuple(items);
    Py_DECREF(items);
    return value;
}

static int parse_pair(struct parser *p, PyObject *dict, PyObject *key)
{
    PyObject *item = parse_value(p);
    int failed = item == NULL ? -1 : PyDict_SetItem(dict, key, item);
    Py_XDECREF(item);
    return failed;
}

/* One element; the first decides whether the value is a dict or a set. */
static int parse_element(struct parser *p, PyObject **value)
{
    PyObject *key = parse_value(p);
    int failed = -1;
    bool is_pair;

    if (key == NULL)
        return -1;
    is_pair = skip_char(p, ':');
    if (*value == NULL)
        *value = is_pair ? PyDict_New() : PySet_New(NULL);
    if (*value == NULL)
        failed = -1;
    else if (is_pair != PyDict_CheckExact(*value))
        refuse("a dict or a set, not both");
    else
        failed = is_pair ? parse_pair(p, *value, key) : PySet_Add(*value, key);
    Py_DECREF(key);
    return failed;
}

static PyObject *parse_dict_or_set(struct parser *p)
{
    PyObject *value = NULL;
    bool comma = true;

    if (skip_char(p, '}'))
        return PyDict_New();
    while (!skip_char(p, '}')) {
        if (!comma)
            refuse("expected a comma");
        if (!comma || parse_element(p, &value) < 0) {
            Py_XDECREF(value);
            if (PyErr_ExceptionMatches(PyExc_TypeError)) { /* not hashable */
                PyErr_Clear();
                refuse("this cannot be a key or an element of a set");
            }
            return NULL;
        }
        comma = skip_char(p, ',');
    }
    return value;
}

static PyObject *parse_container(struct parser *p)
{
    char open = *p->at++;
    PyObject *value;

    if (p->depth_left == 0)
        return refuse("too deeply nested");
    p->depth_left--;
    value = open == '{' ? parse_dict_or_set(p) : parse_list_or_tuple(p, open == '[');
    p->depth_left++;
    return value;
}

static PyObject *parse_value(struct parser *p)
{
    char c;
    skip_blanks(p);
    c = look(p, 0);
    if (number_starts(p) || c == '+' || c == '-')
        return parse_signed(p);
    if (string_starts(p))
        return parse_strings(p);
    if (c == '(' || c == '[' || c == '{')
        return parse_container(p);
    if (skip_word(p, "None"))
        Py_RETURN_NONE;
    if (skip_word(p, "True"))
        Py_RETURN_TRUE;
    if (skip_word(p, "False"))
        Py_RETURN_FALSE;
    if (skip_word(p, "set") && skip_char(p, '(') && skip_char(p, ')'))
        return PySet_New(NULL);
    return refuse("expected a literal");
}

/* ---- Argument lists --------------------------------------------------------------------------- */

static bool is_keyword(const char *name, size_t length)
{
    static const char *const words[] = {
        "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class",
        "continue", "def", "del", "elif", "else", "except", "finally", "for", "from", "global",
        "if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise", "return",
        "try", "while", "with", "yield",
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == length && memcmp(words[i], name, length) == 0)
            return true;
    return false;
}

/* Whether `name =` comes next; the parser then stands behind the sign. */
static bool skip_name(struct parser *p, const char **name, size_t *length)
{
    struct parser ahead = *p;
    skip_blanks(&ahead);
    *name = ahead.at;
    *length = word_length(&ahead);
    if (*length == 0 || is_digit(**name) || is_keyword(*name, *length))
        return false;
    ahead.at += *length;
    if (!skip_char(&ahead, '=') || look(&ahead, 0) == '=')
        return false;
    p->at = ahead.at;
    return true;
}

/* As Python's own parser makes a name: in the form NFKC. */
static PyObject *make_name(const char *bytes, size_t length)
{
    PyObject *name = PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, NULL), *module, *normal;

    if (name == NULL && PyErr_ExceptionMatches(PyExc_UnicodeError))
        return refuse("not a name");
    if (name == NULL || PyUnicode_IS_ASCII(name))
        return name;
    if (!PyUnicode_IsIdentifier(name)) {
        Py_DECREF(name);
        return refuse("not a name");
    }
    if ((module = PyImport_ImportModule("unicodedata")) == NULL) {
        Py_DECREF(name);
        return NULL;
    }
    normal = PyObject_CallMethod(module, "normalize", "sN", "NFKC", name);
    Py_DECREF(module);
    return normal;
}

static int add_keyword(struct parser *p, PyObject **kwargs, const char *name, size_t length)
{
    PyObject *key = make_name(name, length), *value = NULL;
    int failed = -1, repeated;

    if (key == NULL || (*kwargs == NULL && (*kwargs = PyDict_New()) == NULL))
        goto done;
    if ((value = parse_value(p)) == NULL)
        goto done;
    if ((repeated = PyDict_Contains(*kwargs, key)) > 0)
        refuse("keyword argument repeated");
    else if (repeated == 0)
        failed = PyDict_SetItem(*kwargs, key, value);
done:
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed;
}

static int add_positional(struct parser *p, PyObject *list, PyObject *kwargs)
{
    PyObject *value;
    int failed;

    if (kwargs != NULL) {
        refuse("positional argument follows keyword argument");
        return -1;
    }
    if ((value = parse_value(p)) == NULL)
        return -1;
    failed = PyList_Append(list, value);
    Py_DECREF(value);
    return failed;
}

int sbx_parse_args(const char *text, size_t byte_count, uint32_t depth, PyObject **args,
                   PyObject **kwargs)
{
    struct parser p = {text, text + byte_count, depth};
    PyObject *list = PyList_New(0);
    const char *name;
    size_t length;
    bool comma = true;
    int failed = list == NULL;

    *args = *kwargs = NULL;
    for (skip_blanks(&p); !failed && p.at < p.end; skip_blanks(&p)) {
        if (!comma) {
            refuse("expected a comma");
            failed = 1;
        } else if (skip_name(&p, &name, &length)) {
            failed = add_keyword(&p, kwargs, name, length);
        } else {
            failed = add_positional(&p, list, *kwargs);
        }
        comma = !failed && skip_char(&p, ',');
    }
    if (!failed)
        *args = PyList_AsTuple(list);
    Py_XDECREF(list);
    if (*args == NULL)
        Py_CLEAR(*kwargs);
    return *args == NULL ? -1 : 0;
}
