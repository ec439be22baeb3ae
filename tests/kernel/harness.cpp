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

#include <chrono>
#include <thread>

#include "team.hpp"

// Rounds of phases in which worker `sleeper` sleeps; 0 if all came through, else the report.
extern "C" __attribute__((visibility("default"))) int team(
    int workers, double limit, int phases, int sleeper, double seconds, int* counts_out,
    char* report) {
    const auto team = Team::start(workers, limit);
    // A worker that hangs outlives this call: what it works on is shared with it.
    const auto held = std::make_shared<std::vector<int>>(workers, 0);
    auto body = [held, at = team.get(), workers, phases, sleeper, seconds](int worker) {
        Team& own = *at;
        std::vector<int>& counts = *held;
        for (int phase = 0; phase < phases; ++phase) {
            own.enter(worker, phase);
            if (worker == sleeper && phase == 3)
                std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
            // Everything before the barrier is seen after it by all.
            counts[worker] += 1;
            own.barrier(worker);
            int total = 0;
            for (int t = 0; t < workers; ++t) total += counts[t];
            if (total != workers * (phase + 1)) counts[worker] = -1000000;
            own.barrier(worker);
        }
    };
    const bool good = team->run(body);
    std::strncpy(report, team->report().c_str(), 999);
    for (int t = 0; t < workers; ++t) counts_out[t] = (*held)[t];
    team->stop();
    return good ? 0 : 1;
}
