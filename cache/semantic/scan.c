/* Which codes are nearest to a query's: the first word of each within a radius, then all four words.
 *
 * A first pass reads 8 bytes an entry until it has a batch of slots that are near. The other 24 bytes of those are asked for
 * at once and compared only after the pass that finds the next batch, when they have come. Larger batches are slower where
 * many pass: the core keeps only so many lines on their way. */

#include <immintrin.h>
#include <stdint.h>

enum { BLOCK = 2048, BATCH = 64 };

#ifdef __AVX512VPOPCNTDQ__

typedef __m512i word_in_all;
static inline word_in_all in_all(uint64_t word) { return _mm512_set1_epi64((long long)word); }

/* Of `present` words, 8 at most, those within `radius` of `wanted`: their slots, from `slot` on, go to `out`. How many. */
static inline long near_words(const uint64_t *words, long present, word_in_all wanted, long radius, long slot, int32_t *out)
{
    const __mmask8 some = present >= 8 ? 0xff : (__mmask8)((1u << present) - 1);
    const __m512i apart = _mm512_popcnt_epi64(_mm512_xor_si512(_mm512_maskz_loadu_epi64(some, words), wanted));
    const __mmask8 hits = _mm512_mask_cmple_epi64_mask(some, apart, _mm512_set1_epi64(radius));
    const __m256i slots = _mm256_add_epi32(_mm256_set1_epi32((int)slot), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_storeu_si256((__m256i *)out, _mm256_maskz_compress_epi32(hits, slots));
    return __builtin_popcount(hits);
}

#else

typedef __m256i word_in_all;
static inline word_in_all in_all(uint64_t word) { return _mm256_set1_epi64x((long long)word); }

/* The bits of each of four words: of each half of a byte by a table, then the bytes of a word together. */
static inline __m256i count_bits(__m256i words)
{
    const __m256i bits = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, /* and again */
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(bits, _mm256_and_si256(words, half));
    const __m256i high = _mm256_shuffle_epi8(bits, _mm256_and_si256(_mm256_srli_epi16(words, 4), half));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}

/* Of `present` words, 8 at most, those within `radius` of `wanted`: their slots, from `slot` on, go to `out`. How many. */
static inline long near_words(const uint64_t *words, long present, word_in_all wanted, long radius, long slot, int32_t *out)
{
    uint64_t few[8] = {0};
    if (present < 8) {
        for (long i = 0; i < present; i++) few[i] = words[i];
        words = few;
    }
    unsigned far = 0;
    for (int i = 0; i < 2; i++) {
        const __m256i apart = count_bits(_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)words + i), wanted));
        const __m256i beyond = _mm256_cmpgt_epi64(apart, _mm256_set1_epi64x(radius));
        far |= (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(beyond)) << 4 * i;
    }
    long count = 0;
    for (unsigned hits = ~far & (present >= 8 ? 0xff : (1u << present) - 1); hits; hits &= hits - 1)
        out[count++] = (int32_t)slot + __builtin_ctz(hits);
    return count;
}

#endif

/* The `keep` nearest living entries by (distance, slot), sorted; returns how many there are.
 * first [count], rest [count][3], alive [count]; query [4]; distances and slots [keep]. */
long penstock_scan(const uint64_t *first, const uint64_t *rest, const uint8_t *alive, long count, const uint64_t *query,
                   long radius, long keep, int32_t *distances, int32_t *slots)
{
    int32_t buffers[2][BATCH + 16];
    long num_before = 0;
    int turn = 0;
    const word_in_all wanted = in_all(query[0]);
    long found = 0;
    for (long slot = 0; slot < count || num_before > 0; turn ^= 1) {
        const long end = slot + BLOCK < count ? slot + BLOCK : count;
        int32_t *const passed = buffers[turn];
        long num_passed = 0;
        for (; slot < end && num_passed < BATCH; slot += 8)
            num_passed += near_words(first + slot, end - slot, wanted, radius, slot, passed + num_passed);
        for (long i = 0; i < num_passed; i++) {
            const char *const others = (const char *)(rest + 3 * (long)passed[i]);
            _mm_prefetch(others, _MM_HINT_T0);
            _mm_prefetch(others + 23, _MM_HINT_T0);
        }
        const int32_t *const before = buffers[turn ^ 1];
        for (long i = 0; i < num_before; i++) {
            const long near = before[i];
            const uint64_t *others = rest + 3 * near;
            const int32_t distance =
                (int32_t)(_mm_popcnt_u64(first[near] ^ query[0]) + _mm_popcnt_u64(others[0] ^ query[1]) +
                          _mm_popcnt_u64(others[1] ^ query[2]) + _mm_popcnt_u64(others[2] ^ query[3]));
            if (found == keep && distance >= distances[keep - 1])
                continue; /* slots ascend: an equal distance comes after those kept */
            if (!alive[near])
                continue;
            long place = found < keep ? found++ : keep - 1;
            for (; place > 0 && distances[place - 1] > distance; place--) {
                distances[place] = distances[place - 1];
                slots[place] = slots[place - 1];
            }
            distances[place] = distance;
            slots[place] = (int32_t)near;
        }
        num_before = num_passed;
    }
    return found;
}
