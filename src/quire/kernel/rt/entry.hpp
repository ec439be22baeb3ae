// The C interface of a compiled kernel. Included last, after `step` is defined.
#pragma once

namespace quire {
// The arguments of a call. The caller keeps what they point to until the call is over, and for good
// if it failed: the worker that hung still has them.
struct Call {
    void* const* slots;
    const index_t* lengths;
    const index_t* repeats;
    char* scratch;
    index_t scratch_size;  // bytes for each worker
    Team* team;
    void operator()(int worker) const {
        Native q(*team, worker, slots, lengths, repeats, scratch + worker * scratch_size);
        step(q);
    }
};
}  // namespace quire

extern "C" {

#define QUIRE_API __attribute__((visibility("default")))

// A team of `workers` threads, the caller's included; a wait of more than `limit` seconds fails.
using quire_handle = std::shared_ptr<quire::Team>;
QUIRE_API void* quire_team(int workers, double limit) {
    return new quire_handle(quire::Team::start(workers, limit));
}
QUIRE_API void quire_team_free(void* team) {
    auto* own = static_cast<quire_handle*>(team);
    (*own)->stop();
    delete own;
}
QUIRE_API const char* quire_report(void* team) {
    return (*static_cast<quire_handle*>(team))->report().c_str();
}

#if defined(QUIRE_PROFILE)
QUIRE_API int quire_times(void* team, double* out, int n) {
    const auto& times = (*static_cast<quire_handle*>(team))->times_;
    for (int i = 0; i < n && i < int(times.size()); ++i) out[i] = times[i];
    return int(times.size());
}
#endif

// 0: done. 1: a worker hung (see quire_report; memory given to this call must never be freed). 2: the team belongs to another process (a fork).
QUIRE_API int quire_run(void* team, void* const* slots, const std::int64_t* lengths,
                        const std::int64_t* repeats, char* scratch, std::int64_t scratch_size) {
    auto& own = *static_cast<quire_handle*>(team);
    if (!own->is_mine()) return 2;
    quire::Call call{slots, lengths, repeats, scratch, scratch_size, own.get()};
    return own->run(call) ? 0 : 1;
}
}
