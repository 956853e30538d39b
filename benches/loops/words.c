/* How fast one core can run what the AVX2 kernel of q8_0 is made of, and nothing else: `tile_of_words` in src/kernels/avx2.rs
 * without its scales, its panels and its results. Weights stay in registers, activations in the first-level cache.
 *
 *     cc -O3 -funroll-loops -mavx2 -o words benches/loops/words.c && ./words
 *
 * Prints GFLOP/s, and the clock at that time, three times. */
#define _POSIX_C_SOURCE 199309L
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { TOKENS = 4, HALVES = 2, ROUNDS = 100000000 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Additions that wait for one another take one cycle each. */
static double gigahertz(void) {
    unsigned long sum = 0;
    double begun = now();
    for (long i = 0; i < 1000000000; i++) __asm__ volatile("add $1, %0" : "+r"(sum));
    return 1 / (now() - begun);
}

static double gigaflops(void) {
    static int activations[1024 + TOKENS];
    __m256i sums[TOKENS][HALVES], weights[HALVES] = {_mm256_set1_epi16(3), _mm256_set1_epi16(5)}, all;
    for (int t = 0; t < TOKENS; t++) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
    double begun = now();
    for (long i = 0; i < ROUNDS; i++) {
        const int *four = activations + (i & 255) * TOKENS;
        for (int t = 0; t < TOKENS; t++) {
            __m256i pair = _mm256_set1_epi32(four[t]);
            /* So that the compiler does not know what it is. */
            __asm__ volatile("" : "+x"(pair));
            for (int h = 0; h < HALVES; h++)
                sums[t][h] = _mm256_add_epi32(sums[t][h], _mm256_madd_epi16(weights[h], pair));
        }
    }
    double seconds = now() - begun;
    all = sums[0][0];
    for (int t = 0; t < TOKENS; t++) all = _mm256_add_epi32(all, _mm256_add_epi32(sums[t][0], sums[t][1]));
    __asm__ volatile("" : : "x"(all));
    /* 16 products, each with an addition, for every half of every token. */
    return 2.0 * 16 * TOKENS * HALVES * ROUNDS / seconds * 1e-9;
}

int main(void) {
    for (int i = 0; i < 3; i++) {
        double clock = gigahertz();
        printf("%.1f GFLOP/s, %.2f GHz\n", gigaflops(), clock);
    }
    return 0;
}
