/* What a fork copies: few mappings, few pages, and of those that a child needs, all.
 *
 * A fork and the exit after it cost about 1.3 us for a mapping and 0.14 us for a page of 4 KiB
 * (docs/notes.md), and a page that a child does not find mapped, or writes to, costs it a fault. An
 * interpreter with its modules has 120 mappings and 3,000 pages. So before a zygote locks itself
 * down, it is laid out anew, without a byte changed:
 *
 *   gathered  What is allocated from now on, as children do, lies together.
 *   joined    Of a library's five mappings, those without write access become one, and those with
 *             it another: constants become executable and relocated tables writable. A child may
 *             hold any native state anyhow, and no filter looks at these rights.
 *   settled   Writable memory moves into huge pages, at the same addresses: a fork copies such a
 *             page, or its part of one, as one entry. Of the text, only what a rehearsal has just
 *             touched stays mapped. A fork does not copy the entries of a mapping that only shows
 *             a file, unless a page of it was written to; so one is (unchanged), and the densest
 *             stretches of text move into huge pages as well.
 *
 * All of it is for speed alone: where the host refuses a step, the rest works as before.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE_BYTES ((size_t)4096)
#define HUGE_BYTES ((size_t)2 << 20)
/* Fewer pages in a row are not worth a mapping of their own. */
#define STRETCH_BYTES_MIN (256 << 10)
#define GAP_BYTES_MAX (64 << 10)
#define MAPPINGS_MAX 512
/* A sanitizer takes the move of what it has given out for an overflow. */
#ifdef __SANITIZE_ADDRESS__
#define MEMORY_IS_WATCHED true
#else
#define MEMORY_IS_WATCHED false
#endif

struct mapping {
    unsigned char *start, *end;
    int protection;
    unsigned long file; /* its inode, 0: no file */
    bool stays; /* the stack, and what no child maps */
    unsigned long resident_kib, written_kib;
};

/* Not on the heap, for that is what moves. */
static struct mapping mappings[MAPPINGS_MAX];

static size_t bytes_of(const struct mapping *m) { return (size_t)(m->end - m->start); }

static bool parse_mapping(const char *line, struct mapping *m)
{
    unsigned long start, end, offset, file;
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s %lx %*s %lu", &start, &end, rights, &offset, &file) != 5)
        return false;
    *m = (struct mapping){
        .start = (unsigned char *)start,
        .end = (unsigned char *)end,
        .protection = (rights[0] == 'r' ? PROT_READ : 0) | (rights[1] == 'w' ? PROT_WRITE : 0) |
                      (rights[2] == 'x' ? PROT_EXEC : 0),
        .file = file,
        .stays = strstr(line, "[stack]") != NULL,
    };
    return rights[0] == 'r' && rights[3] == 'p';
}

/* Fills the table with the private mappings that can be read, in the order of their addresses. */
static size_t read_mappings(void)
{
    char line[4352];
    size_t count = 0;
    bool taken = false;
    FILE *smaps = fopen("/proc/self/smaps", "re");

    if (smaps == NULL)
        return 0;
    while (fgets(line, sizeof line, smaps) != NULL) {
        struct mapping *last = taken ? &mappings[count - 1] : NULL;
        if (strchr("0123456789abcdef", line[0]) != NULL) {
            taken = count < MAPPINGS_MAX && parse_mapping(line, &mappings[count]);
            count += taken;
        } else if (last != NULL) {
            sscanf(line, "Rss: %lu", &last->resident_kib);
            sscanf(line, "Anonymous: %lu", &last->written_kib);
            last->stays |= strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " dc ") != NULL;
        }
    }
    fclose(smaps);
    return count;
}

static bool adjoin(const struct mapping *a, const struct mapping *b)
{
    return a->file != 0 && a->file == b->file && a->end == b->start;
}

/* ---- Gathering -------------------------------------------------------------------------------- */

/* From large to small, whatever lies below the part of the heap that was never given out. */
static void use_up_gaps(void)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
    enum { LARGEST = 120 << 10, SMALLEST = 16, STEPPED = 1040 };
    unsigned char *fresh = (unsigned char *)sbrk(0) - mallinfo2().keepcost, *chunk;

    for (size_t size = LARGEST; size >= SMALLEST; size -= size > STEPPED ? 512 : 16) {
        do
            chunk = malloc(size);
        while (chunk != NULL && chunk < fresh);
        free(chunk);
    }
#endif
}

/* ---- Joining ---------------------------------------------------------------------------------- */

/* The rights with which a mapping is the same as one beside it: the kernel joins them then. */
static int joint_protection(const struct mapping *m, bool has_left, bool has_right)
{
    if (has_right && m->written_kib && m[1].protection == (PROT_READ | PROT_WRITE))
        return PROT_READ | PROT_WRITE;
    if ((has_right && m[1].protection == (PROT_READ | PROT_EXEC)) ||
        (has_left && m[-1].protection == (PROT_READ | PROT_EXEC)))
        return PROT_READ | PROT_EXEC;
    return m->protection;
}

static void join_mappings(void)
{
    size_t count = read_mappings();
    for (size_t i = 0; i < count; i++) {
        struct mapping *m = &mappings[i];
        bool has_left = i > 0 && adjoin(m - 1, m), has_right = i + 1 < count && adjoin(m, m + 1);
        if (m->protection == PROT_READ)
            mprotect(m->start, bytes_of(m), joint_protection(m, has_left, has_right));
    }
}

/* Unmaps the pages that hold the file's own bytes. One that was written before, such as a table of
 * relocated addresses, is nowhere else. */
static void drop_file_pages(void)
{
    size_t count = read_mappings();
    for (size_t i = 0; i < count; i++)
        if (mappings[i].file && !(mappings[i].protection & PROT_WRITE) && !mappings[i].written_kib)
            madvise(mappings[i].start, bytes_of(&mappings[i]), MADV_DONTNEED);
}

void sbx_tidy(void)
{
    use_up_gaps();
    join_mappings();
    drop_file_pages();
}

/* ---- Settling --------------------------------------------------------------------------------- */

/* Writes the last byte of a mapping to itself. All of it changes its rights for that moment, for a
 * page alone would stay a mapping of its own. */
static void write_once(const struct mapping *m)
{
    volatile unsigned char *last = m->end - 1;
    if (mprotect(m->start, bytes_of(m), m->protection | PROT_WRITE) < 0)
        return;
    *last = *last;
    mprotect(m->start, bytes_of(m), m->protection);
}

/* Moves the bytes into huge pages and those to the same addresses. Between the copy and the move
 * nobody may write to what is moved, so nothing here allocates. */
static void move_into_huge_pages(unsigned char *start, unsigned char *end, int protection)
{
    size_t size = (size_t)(end - start), offset = (uintptr_t)start % HUGE_BYTES;
    size_t room_bytes = (offset + size + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    unsigned char *room = mmap(NULL, room_bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *aligned = room + (HUGE_BYTES - (uintptr_t)room % HUGE_BYTES) % HUGE_BYTES;
    unsigned char *copy = aligned + offset;

    if (room == MAP_FAILED)
        return;
    if (madvise(aligned, room_bytes, MADV_HUGEPAGE) == 0) {
        memcpy(copy, start, size);
        if (mprotect(copy, size, protection) == 0)
            mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start);
    }
    munmap(room, room_bytes + HUGE_BYTES);
}

static bool is_present(int pagemap, const unsigned char *page)
{
    uint64_t entry = 0;
    off_t at = (off_t)((uintptr_t)page / PAGE_BYTES * sizeof entry);
    return pread(pagemap, &entry, sizeof entry, at) == sizeof entry && entry >> 63;
}

/* Moves the stretches of pages in use, if long enough; a short gap between two is taken along. */
static void settle_mapping(int pagemap, const struct mapping *m)
{
    unsigned char *stretch = NULL, *stretch_end = NULL, *page;

    for (page = m->start; page < m->end; page += PAGE_BYTES) {
        if (!is_present(pagemap, page))
            continue;
        if (stretch == NULL || page - stretch_end > GAP_BYTES_MAX) {
            if (stretch_end - stretch >= STRETCH_BYTES_MIN)
                move_into_huge_pages(stretch, stretch_end, m->protection);
            stretch = page;
        }
        stretch_end = page + PAGE_BYTES;
    }
    if (stretch_end - stretch >= STRETCH_BYTES_MIN)
        move_into_huge_pages(stretch, stretch_end, m->protection);
}

void sbx_settle(void)
{
    size_t count = read_mappings();
    int pagemap;

    if (MEMORY_IS_WATCHED || sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES) /* larger are fewer */
        return;
    if ((pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) < 0)
        return;
    for (size_t i = 0; i < count; i++) {
        const struct mapping *m = &mappings[i];
        size_t resident_bytes = m->resident_kib << 10;
        if (m->stays || resident_bytes < STRETCH_BYTES_MIN)
            continue;
        if (!(m->protection & PROT_WRITE))
            write_once(m);
        settle_mapping(pagemap, m);
    }
    close(pagemap);
    /* Where huge pages come unasked, a child would zero two MiB for its first new list. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}
