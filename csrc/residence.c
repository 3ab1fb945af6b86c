/* Which pages a zygote keeps: what a fork copies, and what a child finds mapped.
 *
 * A fork does not copy the page table of a mapping that only shows a file, so every child would
 * fault the interpreter's text in again, some forty times. It does copy it once a page of the
 * mapping has been written to. So one page of each is written (unchanged), all are dropped, and
 * whatever is used from then on, in a rehearsal, is what every child has at hand.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

struct mapping {
    unsigned char *start, *end;
    int protection;
};

/* A private mapping of a file that is not writable. */
static bool parse_mapping(const char *line, struct mapping *m)
{
    unsigned long start, end, offset, inode;
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s %lx %*s %lu", &start, &end, rights, &offset, &inode) != 5)
        return false;
    m->start = (unsigned char *)start;
    m->end = (unsigned char *)end;
    m->protection = PROT_READ | (rights[2] == 'x' ? PROT_EXEC : 0);
    return inode != 0 && rights[0] == 'r' && rights[1] == '-' && rights[3] == 'p';
}

/* Writes the last byte of a mapping to itself. All of it changes its rights for that moment, for a
 * page alone would stay a mapping of its own. A host that forbids it loses speed alone. */
static void write_once(const struct mapping *m)
{
    size_t byte_count = (size_t)(m->end - m->start);
    volatile unsigned char *last = m->end - 1;
    if (mprotect(m->start, byte_count, m->protection | PROT_WRITE) < 0)
        return;
    *last = *last;
    mprotect(m->start, byte_count, m->protection);
}

/* Mappings that hold the file's own bytes alone. A page that was written before, such as a table
 * of relocated addresses, is nowhere else: its mapping stays as it is. */
static size_t find_mappings(struct mapping *found, size_t most)
{
    char line[4352];
    size_t count = 0;
    unsigned long anonymous_kib;
    bool candidate = false;
    FILE *maps = fopen("/proc/self/smaps", "re");

    if (maps == NULL)
        return 0;
    while (count < most && fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "Anonymous: %lu", &anonymous_kib) == 1) {
            count += candidate && anonymous_kib == 0;
            candidate = false;
        } else if (strchr("0123456789abcdef", line[0]) != NULL) {
            candidate = parse_mapping(line, &found[count]);
        }
    }
    fclose(maps);
    return count;
}

void sbx_drop_residence(void)
{
    struct mapping found[256];
    size_t count = find_mappings(found, sizeof found / sizeof *found);

    for (size_t i = 0; i < count; i++) {
        write_once(&found[i]);
        madvise(found[i].start, (size_t)(found[i].end - found[i].start), MADV_DONTNEED);
    }
}
