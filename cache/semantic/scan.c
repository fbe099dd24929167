/* Which codes are nearest to a query's: the first word of each within a radius, then all four words.
 *
 * A first pass reads 8 bytes an entry until it has a batch of slots that are near. The other 24 bytes of those are asked for
 * at once and compared only after the pass that finds the next batch, when they have come. Larger batches are slower where
 * many pass: the core keeps only so many lines on their way. */

#include <immintrin.h>
#include <stdint.h>

enum { BLOCK = 2048, BATCH = 64 };

/* The `keep` nearest living entries by (distance, slot), sorted; returns how many there are.
 * first [count], rest [count][3], alive [count]; query [4]; distances and slots [keep]. */
long penstock_scan(const uint64_t *first, const uint64_t *rest, const uint8_t *alive, long count, const uint64_t *query,
                   long radius, long keep, int32_t *distances, int32_t *slots)
{
    int32_t buffers[2][BATCH + 16];
    long num_before = 0;
    int turn = 0;
    const __m512i wanted = _mm512_set1_epi64((long long)query[0]);
    const __m512i limit = _mm512_set1_epi64(radius);
    const __m256i step = _mm256_set1_epi32(8);
    long found = 0;
    for (long slot = 0; slot < count || num_before > 0; turn ^= 1) {
        const long end = slot + BLOCK < count ? slot + BLOCK : count;
        int32_t *const passed = buffers[turn];
        __m256i numbers = _mm256_add_epi32(_mm256_set1_epi32((int)slot), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        long num_passed = 0;
        for (; slot < end && num_passed < BATCH; slot += 8) {
            const __mmask8 present = end - slot >= 8 ? 0xff : (__mmask8)((1u << (end - slot)) - 1);
            const __m512i words = _mm512_maskz_loadu_epi64(present, first + slot);
            const __m512i apart = _mm512_popcnt_epi64(_mm512_xor_si512(words, wanted));
            const __mmask8 hits = _mm512_mask_cmple_epu64_mask(present, apart, limit);
            _mm256_storeu_si256((__m256i *)(passed + num_passed), _mm256_maskz_compress_epi32(hits, numbers));
            num_passed += __builtin_popcount(hits);
            numbers = _mm256_add_epi32(numbers, step);
        }
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
