/* What the processor can do. Compiled for any x86-64, unlike encoder.c, which only such processors may enter. */
#include "encoder.h"

int distilbert_interface(void) { return DISTILBERT_INTERFACE; }

int distilbert_kinds(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("fma"))
        return 0;
    return 1 | (__builtin_cpu_supports("avx512bf16") ? 2 : 0) | (__builtin_cpu_supports("avx512vnni") ? 4 : 0);
}

int distilbert_has_matrix_units(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("amx-tile") != 0;
}
