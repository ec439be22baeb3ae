// The runtime headers, called from tests/kernel/test_rt.py.
#include "attend.hpp"
#include "dot.hpp"
#include "math.hpp"
#include "native.hpp"

using namespace quire;

#define DOT(name, type)                                                                     \
    extern "C" __attribute__((visibility("default"))) void dot_##name(                      \
        float* out, const type* w, index_t at, const float* x, index_t rows, index_t columns, \
        index_t k) {                                                                        \
        dot(out, rows, index_t(1), w, at, k, rows, x, k, columns, k);                       \
    }
// Rows at, at + apart, … of weights in blocks.
#define BLOCKS(name, type)                                                                  \
    extern "C" __attribute__((visibility("default"))) void dot_##name(                      \
        float* out, const type* w, index_t at, const float* x, index_t rows, index_t columns, \
        index_t k, index_t apart) {                                                         \
        dot_blocks(Target{out, rows, 1}, Rows<type>{w, k / SPAN, at / k, apart, rows}, x, k, \
                   columns, k);                                                             \
    }                                                                                       \
    extern "C" __attribute__((visibility("default"))) void elements_##name(                 \
        float* out, const type* w, index_t k, index_t n) {                                  \
        for (index_t i = 0; i < n; ++i) out[i] = element(w, k, i);                          \
    }
BLOCKS(int8, int8_block)
BLOCKS(int4, int4_block)
BLOCKS(lossless, lossless_block)

DOT(float, float)
DOT(bf16, bf16)
DOT(fp16, fp16)

// Of vectors that are bf16 in the model.
#define NARROW(name, type, ...)                                                             \
    extern "C" __attribute__((visibility("default"))) void narrow_##name(                   \
        float* out, const type* w, index_t at, const float* x, index_t rows, index_t columns, \
        index_t k, index_t apart) {                                                         \
        __VA_ARGS__;                                                                        \
    }
NARROW(bf16, bf16, dot_bf16(out, rows, index_t(1), w, at, k * apart, rows, x, k, columns, k))
#define NARROW_BLOCKS(name, type)                                                           \
    NARROW(name, type, dot_blocks_bf16(                                                     \
        Target{out, rows, 1}, Rows<type>{w, k / SPAN, at / k, apart, rows}, x, k, columns, k))
NARROW_BLOCKS(int8, int8_block)
NARROW_BLOCKS(int4, int4_block)
NARROW_BLOCKS(lossless, lossless_block)

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

// exp_below of 16 · n floats.
extern "C" __attribute__((visibility("default"))) void below(
    float* out, const float* in, index_t n) {
    for (index_t i = 0; i < n; ++i)
        store16(out + 16 * i, exp_below(load16(in + 16 * i)));
}

// `count` queries over the live ones of the same keys, as the workers of a team share them out.
// Query g sees keys lo[g] <= j < hi[g] but every `dead`-th, and scores are capped.
template <class T>
void attend(
    float* out, const float* q, const T* k, const T* v, index_t count, index_t inner,
    index_t width, index_t keys, index_t block, const index_t* lo, const index_t* hi,
    index_t dead, int workers, float* parts) {
    const index_t size = ((keys + block - 1) / block) * (width + 2);
    const auto team = Team::start(workers, 60);
    const auto cap = [&](auto, auto, auto j, auto d) {
        const bool live = dead == 0 || j % dead != 0;
        return live ? 30.0f * Native::tanh(d / 30.0f) : -Native::infinity();
    };
    const auto zero = [](auto, auto) { return index_t(0); };
    team->run([&, at = team.get()](int worker) {
        Native native(*at, worker, nullptr, nullptr, nullptr, nullptr);
        native.enter();
        native.attend(
            1, count, block, parts, q, inner, k, inner, v, width, width,
            [&](auto, auto g) { return lo[g]; }, [&](auto, auto g) { return hi[g]; },
            [&](auto, auto g) { return g * inner; }, zero, zero,
            [&](auto, auto g) { return g * size; }, cap);
    });
    team->stop();
    for (index_t g = 0; g < count; ++g)
        Native::merge(out, g * width, 1, parts, g * size, width, block, lo[g], hi[g]);
}

#define ATTEND(name, type)                                                                       \
    extern "C" __attribute__((visibility("default"))) void attend_##name(                        \
        float* out, const float* q, const type* k, const type* v, index_t count, index_t inner,  \
        index_t width, index_t keys, index_t block, const index_t* lo, const index_t* hi,        \
        index_t dead, int workers, float* parts) {                                               \
        attend(out, q, k, v, count, inner, width, keys, block, lo, hi, dead, workers, parts);    \
    }
ATTEND(float, float)
ATTEND(bf16, bf16)
ATTEND(fp16, fp16)

#include <chrono>
#include <thread>

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

// Calls of phases of `segments` segments of the same units. Worker `slow` sleeps in each run of
// units. `did` counts [call·phase][segment][unit], `by` the units of each worker.
extern "C" __attribute__((visibility("default"))) int units(
    int workers, int calls, int phases, int segments, index_t count, index_t align, int slow,
    double seconds, int* did, index_t* by) {
    const auto team = Team::start(workers, 60);
    std::mutex mutex;
    bool good = true;
    for (int call = 0; call < calls; ++call)
        good &= team->run([&, at = team.get()](int worker) {
            Native q(*at, worker, nullptr, nullptr, nullptr, nullptr);
            for (int phase = 0; phase < phases; ++phase) {
                q.enter();
                for (int s = 0; s < segments; ++s) {
                    int* here = did + ((call * phases + phase) * segments + s) * count;
                    q.units(
                        q.share(s * count, 1, count, segments * count, align), count, count,
                        [&](index_t, index_t from, index_t to) {
                            if (worker == slow)
                                std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
                            std::lock_guard<std::mutex> hold(mutex);
                            for (index_t u = from; u < to; ++u) here[u] += 1;
                            by[worker] += to - from;
                        });
                }
                if (phase + 1 < phases) q.wait();
            }
        });
    team->stop();
    return good ? 0 : 1;
}

// Attention of `outer` groups of queries, by workers of which `slow` sleeps in each unit. `did`
// counts the units of each query [outer][group], `by` those of each worker.
extern "C" __attribute__((visibility("default"))) int attention(
    int workers, index_t outer, index_t group, index_t block, index_t keys, const index_t* lo,
    const index_t* hi, int slow, double seconds, int* did, index_t* by) {
    constexpr index_t WIDTH = 16;
    const index_t size = ((keys + block - 1) / block) * (WIDTH + 2);
    const std::vector<float> queries(outer * group * WIDTH), kept(keys * WIDTH);
    std::vector<float> parts(outer * group * size);
    const auto team = Team::start(workers, 60);
    std::mutex mutex;
    const bool good = team->run([&, at = team.get()](int worker) {
        Native q(*at, worker, nullptr, nullptr, nullptr, nullptr);
        const auto zero = [](auto, auto) { return index_t(0); };
        q.enter();
        q.attend(
            outer, group, block, parts.data(), queries.data(), WIDTH, kept.data(), WIDTH,
            kept.data(), WIDTH, WIDTH, [&](auto u, auto) { return lo[u]; },
            [&](auto u, auto) { return hi[u]; },
            [&](auto u, auto g) { return (u * group + g) * WIDTH; }, zero, zero,
            [&](auto u, auto g) {
                if (worker == slow && g == 0)
                    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
                std::lock_guard<std::mutex> hold(mutex);
                did[u * group + g] += 1;
                by[worker] += 1;
                return (u * group + g) * size;
            },
            [](auto, auto, auto, auto d) { return d; });
    });
    team->stop();
    return good ? 0 : 1;
}
