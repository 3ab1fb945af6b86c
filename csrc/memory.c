/* Whether an allocation has failed. A program may catch the MemoryError, and the parser says it of a
 * text that is too complex, too: only the allocators know.
 *
 * All three of the interpreter's domains are the C library's malloc here (PYTHONMALLOC=malloc), so
 * that these functions do what those do that they stand for, and cost no call more.
 */
#include "sandbox.h"

#include <stdlib.h>

bool sbx_memory_ran_out;

static void *noted(void *block)
{
    if (block == NULL)
        sbx_memory_ran_out = true;
    return block;
}

static void *noted_malloc(void *context, size_t byte_count)
{
    (void)context;
    return noted(malloc(byte_count ? byte_count : 1));
}

static void *noted_calloc(void *context, size_t count, size_t byte_count)
{
    (void)context;
    return noted(count && byte_count ? calloc(count, byte_count) : calloc(1, 1));
}

static void *noted_realloc(void *context, void *block, size_t byte_count)
{
    (void)context;
    return noted(realloc(block, byte_count ? byte_count : 1));
}

static void plain_free(void *context, void *block)
{
    (void)context;
    free(block);
}

/* Where frames lie. */
static PyObjectArenaAllocator arenas;

static void *noted_arena(void *context, size_t byte_count)
{
    (void)context;
    return noted(arenas.alloc(arenas.ctx, byte_count));
}

void sbx_watch_memory(void)
{
    const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    PyMemAllocatorEx watched = {NULL, noted_malloc, noted_calloc, noted_realloc, plain_free};
    PyObjectArenaAllocator noting;

    for (int i = 0; i < 3; i++)
        PyMem_SetAllocator(domains[i], &watched);
    PyObject_GetArenaAllocator(&arenas);
    noting = arenas;
    noting.alloc = noted_arena;
    PyObject_SetArenaAllocator(&noting);
}
