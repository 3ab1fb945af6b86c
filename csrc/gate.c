/* The one `syscall` instruction from which the filter allows the zygote's own system calls. */
#include "sandbox.h"

#include <sys/mman.h>

/* A page larger than the machine's would be wasted, a smaller one would leave neighbours. */
#if defined(__x86_64__)
#define GATE_BYTES 4096
__asm__(".pushsection .text.sbx_gate,\"ax\",@progbits\n"
        ".balign 4096\n"
        "sbx_gate_page:\n"
        ".globl sbx_gate\n"
        ".hidden sbx_gate\n"
        ".type sbx_gate,@function\n"
        "sbx_gate:\n"
        "    movq %rdi, %rax\n"
        "    movq %rsi, %rdi\n"
        "    movq %rdx, %rsi\n"
        "    movq %rcx, %rdx\n"
        "    movq %r8, %r10\n"
        "    movq %r9, %r8\n"
        "    movq 8(%rsp), %r9\n"
        "    syscall\n"
        "sbx_gate_after:\n"
        "    ret\n"
        ".size sbx_gate, .-sbx_gate\n"
        ".balign 4096\n"
        ".popsection\n");
#elif defined(__aarch64__)
#define GATE_BYTES 65536 /* the largest page of this architecture */
__asm__(".pushsection .text.sbx_gate,\"ax\",@progbits\n"
        ".balign 65536\n"
        "sbx_gate_page:\n"
        ".globl sbx_gate\n"
        ".hidden sbx_gate\n"
        ".type sbx_gate,%function\n"
        "sbx_gate:\n"
        "    hint #34\n" /* bti c */
        "    mov x8, x0\n"
        "    mov x0, x1\n"
        "    mov x1, x2\n"
        "    mov x2, x3\n"
        "    mov x3, x4\n"
        "    mov x4, x5\n"
        "    mov x5, x6\n"
        "    svc #0\n"
        "sbx_gate_after:\n"
        "    ret\n"
        ".size sbx_gate, .-sbx_gate\n"
        ".balign 65536\n"
        ".popsection\n");
#else
#error "the sandbox knows x86-64 and aarch64"
#endif

extern const unsigned char sbx_gate_page[] __attribute__((visibility("hidden")));
extern const unsigned char sbx_gate_after[] __attribute__((visibility("hidden")));

uint64_t sbx_gate_ip(void) { return (uint64_t)(uintptr_t)sbx_gate_after; }

int sbx_gate_unmap(void) { return munmap((void *)(uintptr_t)sbx_gate_page, GATE_BYTES); }
