// The runtime headers, called from tests/kernel/test_rt.py.
#include "attend.hpp"
#include "dot.hpp"
#include "math.hpp"

using namespace quire;

#define DOT(name, type)                                                                     \
    extern "C" __attribute__((visibility("default"))) void dot_##name(                      \
        float* out, const type* w, const float* x, index_t rows, index_t columns, index_t k) { \
        dot(out, rows, index_t(1), w, k, rows, x, k, columns, k);                           \
    }
DOT(float, float)
DOT(bf16, bf16)
DOT(fp16, fp16)
DOT(int8, int8_group)
DOT(int4, int4_group)

extern "C" __attribute__((visibility("default"))) void function(
    int which, float* out, const float* in, index_t n) {
    for (index_t i = 0; i < n; ++i)
        out[i] = which == 0   ? exp_(in[i])
                 : which == 1 ? tanh_(in[i])
                 : which == 2 ? erf_(in[i])
                              : sigmoid_(in[i]);
}

extern "C" __attribute__((visibility("default"))) void halves(
    float* from_half, std::uint16_t* to_half, std::uint16_t* to_bf16, const float* in, index_t n) {
    for (index_t i = 0; i < 65536; ++i) from_half[i] = half_to_float(std::uint16_t(i));
    for (index_t i = 0; i < n; ++i) {
        to_half[i] = float_to_half(in[i]);
        store(reinterpret_cast<bf16*>(to_bf16), i, in[i]);
    }
}

extern "C" __attribute__((visibility("default"))) void attend(
    float* out, const float* q, const bf16* k, const bf16* v, index_t inner, index_t width,
    index_t keys, index_t block, float* parts) {
    index_t s = 0;
    for (index_t j = 0; j < keys; j += block, ++s)
        attend_block(parts + s * (width + 2), q, inner, k, inner, v, width, width, j,
                     j + block < keys ? j + block : keys, [](index_t, float d) { return d; });
    merge_blocks(out, 1, parts, width, 0, s);
}
