// What requests to memory cost on a GPU, counted as kernels run: see traffic.h.
#include "tests/ptxsim/traffic.h"

#include <algorithm>

namespace ptxsim {

enum { BANKS = 32, BANK_BYTES = 4, SECTOR_BYTES = 32 };

// The most different units that lanes [from, to) want of one bank; 0: none of them takes part. A
// unit is what one lane gets at once, so as many lanes as there are units in a row of banks are
// served together.
static uint64_t wavefronts_of(const request &r, int from, int to, uint64_t unit)
{
    int8_t head[BANKS], next[LANES];
    uint8_t count[BANKS] = {};
    uint64_t n_banks = BANKS * BANK_BYTES / unit, most = 0;
    std::fill(head, head + BANKS, (int8_t)-1);
    for (int l = from; l < to; l++) {
        if (!(r.lanes >> l & 1)) continue;
        uint64_t bank = r.at[l] / unit % n_banks;
        int other = head[bank];
        while (other >= 0 && r.at[other] / unit != r.at[l] / unit) other = next[other];
        if (other >= 0) continue;
        next[l] = head[bank];
        head[bank] = (int8_t)l;
        most = std::max<uint64_t>(most, ++count[bank]);
    }
    return most;
}

void count_shared(const instruction &i, const request &r, int32_t bytes)
{
    uint64_t unit = (uint64_t)std::max<int32_t>(bytes, BANK_BYTES);
    int together = (int)(BANKS * BANK_BYTES / unit);
    for (int from = 0; from < LANES; from += together) {
        uint64_t n = wavefronts_of(r, from, from + together, unit);
        i.wavefronts.taken += n;
        i.wavefronts.least += n > 0;
    }
}

void count_global(const instruction &i, const request &r, int32_t bytes)
{
    uint64_t at[LANES];
    int n = 0;
    for (int l = 0; l < LANES; l++)
        if (r.lanes >> l & 1) at[n++] = r.at[l];
    if (n == 0) return;
    if (!std::is_sorted(at, at + n)) std::sort(at, at + n);
    uint64_t sectors = 1, different = 1;
    for (int j = 1; j < n; j++) {
        sectors += at[j] / SECTOR_BYTES != at[j - 1] / SECTOR_BYTES;
        different += at[j] != at[j - 1];
    }
    i.sectors.taken += sectors;
    i.sectors.least += (different * (uint64_t)bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
}

void count_request(const instruction &i, const request &r, int32_t bytes)
{
    space where = i.where;
    if (where == space::generic) {
        uint64_t window = r.at[__builtin_ctz(r.lanes)] & WINDOW_MASK;
        where = window == SHARED_WINDOW ? space::shared : window == LOCAL_WINDOW ? space::local
                                                                                : space::global;
    }
    if (where == space::shared) count_shared(i, r, bytes);
    if (where == space::global) count_global(i, r, bytes);
}

} // namespace ptxsim
