/* Memory: zeros, at a cache line's start, and on huge pages where there is much of it. */
#ifndef DISTILBERT_PAGES_H
#define DISTILBERT_PAGES_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)

static size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

/* What stands before each piece of memory: where it begins, and how much was mapped; nothing was if it is malloc's. */
struct piece {
    char *start;
    size_t mapped;
};

/* Zeros; NULL without memory. Pages of large pieces come when they are first written, so that threads that fill them
 * together also share that work. */
static void *new_memory(size_t size) {
    struct piece piece = {NULL, 0};
    char *memory;
    if (size < HUGE_PAGE) {
        piece.start = aligned_alloc(ALIGNMENT, rounded(size, ALIGNMENT) + ALIGNMENT);
        if (!piece.start) return NULL;
        memory = memset(piece.start + ALIGNMENT, 0, rounded(size, ALIGNMENT));
    } else {
        piece.mapped = rounded(size, HUGE_PAGE) + HUGE_PAGE;
        piece.start = mmap(NULL, piece.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece.start == MAP_FAILED) return NULL;
        memory = (char *)rounded((size_t)piece.start + ALIGNMENT, HUGE_PAGE);
#ifdef MADV_HUGEPAGE
        madvise(memory, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    }
    memcpy(memory - sizeof piece, &piece, sizeof piece);
    return memory;
}

static void free_memory(void *memory) {
    struct piece piece;
    if (!memory) return;
    memcpy(&piece, (char *)memory - sizeof piece, sizeof piece);
    if (piece.mapped) munmap(piece.start, piece.mapped);
    else free(piece.start);
}

#endif
