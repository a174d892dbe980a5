/* What happens many times a step, in C: the pen of pen.py, the digest of a batch of batches.py, and a filter before
   the hook of probes.py at every flag.

   The Python beside it says what each part does, and runs alone where this file could not be compiled. Tests have both
   do the same work and compare. Nothing here raises for what a Trainer did: what is out of the ordinary is left to the
   Python.

   A row has to be whole or absent when the process is killed. So its words are stored one after the other, the time
   last (volatile: a compiler keeps their order), and only then the position moves on. No signal handler of Python can
   run between two of them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <pythread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum {
    WORD_BYTES = 8,
    CELL_NUMBERS = 1 << 12,
    TICKS_A_SECOND = 1 << 20,
    MOST_VALUES = 8,
    MOST_POSITIONS = 64,
    IGNORED_LABEL = -100,
};

static PyObject *str_data_ptr, *str_dtype, *str_is_contiguous, *str_is_cpu, *str_lr, *str_shape;

/* -- the pen --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_buffer map;        /* map.obj is NULL while there is no map */
    Py_ssize_t capacity;  /* words that fit into the map */
    Py_ssize_t position;  /* words written */
    double zero;
    unsigned long thread;
} Pen;

/* time.perf_counter, to the last bit. */
static double
clock_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)((int64_t)now.tv_sec * 1000000000 + now.tv_nsec) / 1e9;
}

static int
has_room(const Pen *self, Py_ssize_t words)
{
    return self->position >= 0 && self->position <= self->capacity - words &&
           PyThread_get_thread_ident() == self->thread;
}

static uint64_t
bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void
store(Pen *self, const uint64_t *words, Py_ssize_t count, double time)
{
    volatile uint64_t *at = (volatile uint64_t *)self->map.buf + self->position;
    for (Py_ssize_t i = 0; i < count; i++)
        *at++ = words[i];
    *at = bits_of(time);
    self->position += count + 1;
}

/* A whole number from 0 to `most`; -1 for anything else, without an exception. */
static int64_t
whole_number(PyObject *object, int64_t most)
{
    int overflow;
    if (!PyLong_CheckExact(object))
        return -1;
    int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow || value > most ? -1 : value;
}

/* A float as a word; 0 for anything else. */
static int
float_word(PyObject *object, uint64_t *word)
{
    if (!PyFloat_CheckExact(object))
        return 0;
    *word = bits_of(PyFloat_AS_DOUBLE(object));
    return 1;
}

/* The first word of a row of values; 0 where it is none, or where the row has no room. */
static int
begin_row(const Pen *self, PyObject *const *arguments, Py_ssize_t count, uint64_t *words)
{
    if (count < 2 || count > 1 + MOST_VALUES || !has_room(self, count + 1))
        return 0;
    int64_t first = whole_number(arguments[0], INT64_MAX);
    words[0] = (uint64_t)first;
    return first >= 0;
}

static PyObject *
pen_cell(Pen *self, PyObject *number)
{
    int64_t what = whole_number(number, CELL_NUMBERS - 1);
    if (what < 0 || !has_room(self, 1))
        Py_RETURN_FALSE;
    store(self, NULL, 0, clock_s() + self->zero + (double)(what * TICKS_A_SECOND));
    Py_RETURN_TRUE;
}

static PyObject *
pen_event(Pen *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t words[3];
    if (count != 3 || !has_room(self, 4))
        Py_RETURN_FALSE;
    int64_t first = whole_number(arguments[0], INT64_MAX);
    int64_t step = whole_number(arguments[1], UINT32_MAX);
    if (first < 0 || step < 0)
        Py_RETURN_FALSE;
    if (arguments[2] == Py_None)
        words[2] = bits_of(Py_NAN);
    else if (!float_word(arguments[2], &words[2]))
        Py_RETURN_FALSE;
    words[0] = (uint64_t)first;
    words[1] = (uint64_t)step;
    store(self, words, 3, clock_s() + self->zero);
    Py_RETURN_TRUE;
}

static PyObject *
pen_floats(Pen *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t words[1 + MOST_VALUES];
    if (!begin_row(self, arguments, count, words))
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 1; i < count; i++)
        if (!float_word(arguments[i], &words[i]))
            Py_RETURN_FALSE;
    store(self, words, count, clock_s() + self->zero);
    Py_RETURN_TRUE;
}

static PyObject *
pen_integers(Pen *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t words[1 + MOST_VALUES];
    int overflow;
    if (!begin_row(self, arguments, count, words))
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 1; i < count; i++) {
        if (!PyLong_CheckExact(arguments[i]))
            Py_RETURN_FALSE;
        words[i] = (uint64_t)PyLong_AsLongLongAndOverflow(arguments[i], &overflow);
        if (overflow)
            Py_RETURN_FALSE;
    }
    store(self, words, count, clock_s() + self->zero);
    Py_RETURN_TRUE;
}

static PyObject *
pen_rates(Pen *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t words[1 + MOST_VALUES];
    if (count != 3 || !PyList_CheckExact(arguments[1]) || !PyBool_Check(arguments[2]))
        Py_RETURN_FALSE;
    int64_t kind = whole_number(arguments[0], UINT8_MAX);
    Py_ssize_t groups = PyList_GET_SIZE(arguments[1]);
    if (kind < 0 || groups < 1 || groups > MOST_VALUES || !has_room(self, groups + 2))
        Py_RETURN_FALSE;
    words[0] = (uint64_t)kind | (uint64_t)groups << 8 | (uint64_t)(arguments[2] == Py_True) << 16;
    for (Py_ssize_t i = 0; i < groups; i++) {
        PyObject *group = PyList_GET_ITEM(arguments[1], i);
        PyObject *rate = PyDict_CheckExact(group) ? PyDict_GetItem(group, str_lr) : NULL;
        if (rate == NULL || !float_word(rate, &words[1 + i]))
            Py_RETURN_FALSE;
    }
    store(self, words, 1 + groups, clock_s() + self->zero);
    Py_RETURN_TRUE;
}

static PyObject *
pen_samples(Pen *self, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t words[1 + (1 + MOST_POSITIONS + 1) / 2] = {0};
    if (count != 6 || !PyList_CheckExact(arguments[5]))
        Py_RETURN_FALSE;
    Py_ssize_t positions = PyList_GET_SIZE(arguments[5]);
    Py_ssize_t used = 1 + (1 + positions + 1) / 2;
    if (positions > MOST_POSITIONS || !has_room(self, used + 1))
        Py_RETURN_FALSE;
    int64_t kind = whole_number(arguments[0], UINT8_MAX);
    int64_t rows = whole_number(arguments[1], UINT16_MAX);
    int64_t labels = whole_number(arguments[2], UINT16_MAX);
    int64_t digest = whole_number(arguments[4], UINT32_MAX);
    if (kind < 0 || rows < 0 || labels < 0 || digest < 0)
        Py_RETURN_FALSE;
    words[0] = (uint64_t)kind | (uint64_t)positions << 8 | (uint64_t)rows << 16 | (uint64_t)labels << 32 |
               (uint64_t)(arguments[3] == Py_True) << 48;
    words[1] = (uint64_t)digest;
    for (Py_ssize_t i = 0; i < positions; i++) {
        int64_t where = whole_number(PyList_GET_ITEM(arguments[5], i), UINT32_MAX);
        if (where < 0)
            Py_RETURN_FALSE;
        words[1 + (i + 1) / 2] |= (uint64_t)where << (i % 2 ? 0 : 32);
    }
    store(self, words, used, clock_s() + self->zero);
    Py_RETURN_TRUE;
}

static PyObject *
pen_line(Pen *self, PyObject *line)
{
    if (!PyBytes_Check(line) || PyBytes_GET_SIZE(line) % WORD_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a line is bytes, and fills whole words");
        return NULL;
    }
    Py_ssize_t count = PyBytes_GET_SIZE(line) / WORD_BYTES;
    if (self->position < 0 || self->position > self->capacity - count)
        Py_RETURN_FALSE;
    memcpy((uint64_t *)self->map.buf + self->position, PyBytes_AS_STRING(line), (size_t)(count * WORD_BYTES));
    self->position += count;
    Py_RETURN_TRUE;
}

static PyObject *
pen_is_elsewhere(Pen *self, PyObject *Py_UNUSED(nothing))
{
    return PyBool_FromLong(PyThread_get_thread_ident() != self->thread);
}

static void
let_go(Pen *self)
{
    self->capacity = 0;
    if (self->map.obj != NULL)
        PyBuffer_Release(&self->map);
}

static PyObject *
pen_move(Pen *self, PyObject *map)
{
    let_go(self);
    if (map != Py_None) {
        if (PyObject_GetBuffer(map, &self->map, PyBUF_WRITABLE) < 0)
            return NULL;
        self->capacity = self->map.len / WORD_BYTES;
    }
    Py_RETURN_NONE;
}

static int
pen_init(Pen *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"zero", NULL};
    self->thread = PyThread_get_thread_ident();
    return PyArg_ParseTupleAndKeywords(arguments, keywords, "d", names, &self->zero) ? 0 : -1;
}

static void
pen_dealloc(Pen *self)
{
    let_go(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef pen_methods[] = {
    {"cell", (PyCFunction)pen_cell, METH_O, NULL},
    {"event", (PyCFunction)(void (*)(void))pen_event, METH_FASTCALL, NULL},
    {"floats", (PyCFunction)(void (*)(void))pen_floats, METH_FASTCALL, NULL},
    {"integers", (PyCFunction)(void (*)(void))pen_integers, METH_FASTCALL, NULL},
    {"rates", (PyCFunction)(void (*)(void))pen_rates, METH_FASTCALL, NULL},
    {"samples", (PyCFunction)(void (*)(void))pen_samples, METH_FASTCALL, NULL},
    {"line", (PyCFunction)pen_line, METH_O, NULL},
    {"move", (PyCFunction)pen_move, METH_O, NULL},
    {"is_elsewhere", (PyCFunction)pen_is_elsewhere, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef pen_members[] = {
    {"position", T_PYSSIZET, offsetof(Pen, position), 0, NULL},
    {"zero", T_DOUBLE, offsetof(Pen, zero), 0, NULL},
    {NULL},
};

static PyTypeObject PenType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "minitrainer.trace._native.Pen",
    .tp_doc = "See minitrainer.trace.pen.",
    .tp_basicsize = sizeof(Pen),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)pen_init,
    .tp_dealloc = (destructor)pen_dealloc,
    .tp_methods = pen_methods,
    .tp_members = pen_members,
};

/* -- the digest of a batch ----------------------------------------------------------------------- */

/* Fields of batches.Layout. */
enum { SHAPE, DTYPE, START, SIZE_BYTES, ROWS, ELEMENTS, LABEL_BYTES };

static int
attribute_is(PyObject *object, PyObject *name, PyObject *expected)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int is = found == expected;
    Py_XDECREF(found);
    return is;
}

/* The address of a tensor's elements, if it lies in the host's memory as its layout says; else NULL. */
static const char *
elements_of(PyObject *tensor, PyObject *layout)
{
    void *address = NULL;
    PyObject *found;
    if (!attribute_is(tensor, str_is_cpu, Py_True) || !attribute_is(tensor, str_dtype, PyTuple_GET_ITEM(layout, DTYPE)))
        return NULL;
    if ((found = PyObject_GetAttr(tensor, str_shape)) == NULL)
        return NULL;
    int same_shape = PyObject_RichCompareBool(found, PyTuple_GET_ITEM(layout, SHAPE), Py_EQ);
    Py_DECREF(found);
    if (same_shape != 1 || (found = PyObject_CallMethodNoArgs(tensor, str_is_contiguous)) == NULL)
        return NULL;
    int is_contiguous = found == Py_True;
    Py_DECREF(found);
    if (is_contiguous && (found = PyObject_CallMethodNoArgs(tensor, str_data_ptr)) != NULL) {
        address = PyLong_AsVoidPtr(found);  /* NULL for a storage that was given back */
        Py_DECREF(found);
    }
    return address;
}

/* How many labels are not IGNORED_LABEL. */
static PyObject *
labels_that_count(const char *elements, Py_ssize_t size, long label_bytes)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t at = 0; at < size; at += label_bytes) {
        int64_t wide;
        int32_t narrow;
        if (label_bytes == sizeof wide)
            memcpy(&wide, elements + at, sizeof wide);
        else {
            memcpy(&narrow, elements + at, sizeof narrow);
            wide = narrow;
        }
        count += wide != IGNORED_LABEL;
    }
    return PyLong_FromSsize_t(count);
}

/* Continue the digest with a tensor, and count its labels if they are wanted; 0 where that can't be done here. */
static int
add_tensor(PyObject *tensor, PyObject *layout, PyObject *digest_of, uint64_t *digest, PyObject **labels)
{
    int is_added = 0;
    Py_ssize_t size = PyLong_AsSsize_t(PyTuple_GET_ITEM(layout, SIZE_BYTES));
    long label_bytes = PyLong_AsLong(PyTuple_GET_ITEM(layout, LABEL_BYTES));
    const char *elements = size > 0 ? elements_of(tensor, layout) : NULL;
    if (elements == NULL || (labels != NULL && label_bytes < 0))
        return 0;
    PyObject *content = PyMemoryView_FromMemory((char *)elements, size, PyBUF_READ);
    PyObject *seed = PyLong_FromUnsignedLongLong(*digest ^ PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(layout, START)));
    if (content != NULL && seed != NULL) {
        PyObject *given[] = {content, seed};
        PyObject *found = PyObject_Vectorcall(digest_of, given, 2, NULL);
        if (found != NULL) {
            *digest = PyLong_AsUnsignedLongLong(found);
            is_added = 1;
            Py_DECREF(found);
        }
    }
    Py_XDECREF(content);
    Py_XDECREF(seed);
    if (is_added && labels != NULL)
        Py_XSETREF(*labels, label_bytes ? labels_that_count(elements, size, label_bytes)
                                        : Py_NewRef(PyTuple_GET_ITEM(layout, ELEMENTS)));
    return is_added;
}

static PyObject *
identify(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *name, *tensor, *first = NULL, *rows = NULL, *labels = NULL, *found = NULL;
    Py_ssize_t at = 0;
    uint64_t digest = 0;
    int is_whole = count == 5 && PyDict_CheckExact(arguments[0]) && PyDict_CheckExact(arguments[1]);
    while (is_whole && PyDict_Next(arguments[0], &at, &name, &tensor)) {
        PyObject *layout = PyDict_GetItemWithError(arguments[1], name);
        if (layout == NULL || (PyObject *)Py_TYPE(tensor) != arguments[3]) {
            is_whole = 0;
            break;
        }
        Py_INCREF(tensor);
        Py_INCREF(layout);
        int is_label = PyObject_RichCompareBool(name, arguments[2], Py_EQ) == 1;
        is_whole = add_tensor(tensor, layout, arguments[4], &digest, is_label ? &labels : NULL);
        if (rows == NULL || rows == Py_None)  /* as long as no tensor has had a dimension */
            Py_XSETREF(rows, Py_NewRef(PyTuple_GET_ITEM(layout, ROWS)));
        if (first == NULL)
            first = Py_NewRef(tensor);
        Py_DECREF(tensor);
        Py_DECREF(layout);
    }
    if (is_whole && first != NULL && !PyErr_Occurred())
        found = Py_BuildValue("OOkO", rows, labels == NULL ? Py_None : labels, (unsigned long)(digest & UINT32_MAX), first);
    Py_XDECREF(first);
    Py_XDECREF(rows);
    Py_XDECREF(labels);
    PyErr_Clear();
    if (found == NULL)
        Py_RETURN_NONE;
    return found;
}

/* -- assignments that change something ------------------------------------------------------------ */

/* Stands in a class for __setattr__, and calls `hook` with the same arguments, unless assigning would do nothing: every
   step a handler lowers three flags that are not up. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *hook;
} IfChanged;

/* Whether the object has this very value under this name, in its own dictionary, and nothing in its class (a property,
   say) would rather be asked. */
static int
holds_already(PyObject *object, PyObject *name, PyObject *value)
{
    PyObject *of_class = _PyType_Lookup(Py_TYPE(object), name);
    if (of_class != NULL && Py_TYPE(of_class)->tp_descr_set != NULL)
        return 0;
    PyObject *own = PyObject_GenericGetDict(object, NULL);
    int holds = own != NULL && PyDict_GetItemWithError(own, name) == value;
    Py_XDECREF(own);
    PyErr_Clear();
    return holds;
}

static PyObject *
if_changed_call(PyObject *self, PyObject *const *arguments, size_t count, PyObject *names)
{
    if (PyVectorcall_NARGS(count) == 3 && names == NULL && PyUnicode_Check(arguments[1]) &&
        holds_already(arguments[0], arguments[1], arguments[2]))
        Py_RETURN_NONE;
    return PyObject_Vectorcall(((IfChanged *)self)->hook, arguments, count, names);
}

static PyObject *
if_changed_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static PyObject *
if_changed_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *hook;
    if (!PyArg_ParseTuple(arguments, "O", &hook))
        return NULL;
    IfChanged *self = (IfChanged *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->call = if_changed_call;
        self->hook = Py_NewRef(hook);
    }
    return (PyObject *)self;
}

static int
if_changed_traverse(IfChanged *self, visitproc visit, void *arg)
{
    Py_VISIT(self->hook);
    return 0;
}

static int
if_changed_clear(IfChanged *self)
{
    Py_CLEAR(self->hook);
    return 0;
}

static void
if_changed_dealloc(IfChanged *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->hook);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject IfChangedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "minitrainer.trace._native.IfChanged",
    .tp_basicsize = sizeof(IfChanged),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = if_changed_new,
    .tp_traverse = (traverseproc)if_changed_traverse,
    .tp_clear = (inquiry)if_changed_clear,
    .tp_dealloc = (destructor)if_changed_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(IfChanged, call),
    .tp_descr_get = if_changed_get,
};

/* -- the module ----------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"identify", (PyCFunction)(void (*)(void))identify, METH_FASTCALL, NULL},
    {NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "minitrainer.trace._native",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *module;
    str_data_ptr = PyUnicode_InternFromString("data_ptr");
    str_dtype = PyUnicode_InternFromString("dtype");
    str_is_contiguous = PyUnicode_InternFromString("is_contiguous");
    str_is_cpu = PyUnicode_InternFromString("is_cpu");
    str_lr = PyUnicode_InternFromString("lr");
    str_shape = PyUnicode_InternFromString("shape");
    if (PyErr_Occurred() || PyType_Ready(&PenType) < 0 || PyType_Ready(&IfChangedType) < 0 ||
        (module = PyModule_Create(&native_module)) == NULL)
        return NULL;
    if (PyModule_AddObjectRef(module, "Pen", (PyObject *)&PenType) < 0 ||
        PyModule_AddObjectRef(module, "IfChanged", (PyObject *)&IfChangedType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

/* Read next: recorder.py, which gives the pen its map. */
