// Vectors that were given last.
#pragma once

#include <vector>

#include "types.hpp"

namespace quire {

// Tells whether vectors are those that it keeps, bit by bit: a phase multiplies one set of them with
// many rows, and what was made of them then need not be made again.
class Kept {
public:
    // True if they are; else keeps these.
    bool same(const float* x, index_t x_step, index_t as, index_t k) {
        if (as == as_ && k == k_ && equal(x, x_step)) return true;
        as_ = as, k_ = k;
        copy_.resize(as * k);
        for (index_t a = 0; a < as; ++a)
            std::memcpy(copy_.data() + a * k, x + a * x_step, k * sizeof(float));
        return false;
    }
    const float* row(index_t a) const { return copy_.data() + a * k_; }
    index_t count() const { return as_; }
    index_t length() const { return k_; }

private:
    bool equal(const float* x, index_t x_step) const {
        for (index_t a = 0; a < as_; ++a)
            if (!equal(row(a), x + a * x_step)) return false;
        return true;
    }
    bool equal(const float* held, const float* x) const {
        index_t i = 0;
#if defined(__AVX512F__)
        const auto found = [](const float* p) { return _mm512_loadu_si512(p); };
        __m512i apart = {};
        for (; i + 16 <= k_; i += 16)  // apart |= held ^ x
            apart = _mm512_ternarylogic_epi32(apart, found(held + i), found(x + i), 0xf6);
        if (_mm512_test_epi32_mask(apart, apart) != 0) return false;
#endif
        return std::memcmp(held + i, x + i, (k_ - i) * sizeof(float)) == 0;
    }

    std::vector<float> copy_;
    index_t as_ = 0, k_ = 0;
};

}  // namespace quire
