// A kernel with its weights as a library of its own. Included after entry.hpp; what is generated
// gives the tables, the weights, and functions with the names and types of the model's inputs.
#pragma once

#include <new>
#include <thread>

namespace quire {

enum class Source { weight, arena, outside };

struct Slot {
    Source from;
    index_t at;  // bytes into the weights or the arena, or the number of an input or output
};

struct Tables {
    const Slot* slots;
    index_t slot_count;
    const index_t* repeats;
    const char* weights;
    index_t arena, scratch;  // bytes; scratch is for each worker
};

// A number in [0, 1) of 23 bits: SplitMix64 of a counter. The same as runtime/choice.py's.
inline float draw(std::uint64_t seed, std::uint64_t count) {
    std::uint64_t z = seed + (count + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return float((z ^ (z >> 31)) >> 41) * 0x1p-23f;
}

class Library {
public:
    Library(const Tables& tables, int threads, double limit)
        : tables_(tables), threads_(threads > 0 ? threads : cores()),
          arena_(room(tables.arena)), scratch_(room(tables.scratch * threads_)),
          slots_(std::size_t(tables.slot_count)), team_(quire_team(threads_, limit)) {
        for (index_t k = 0; k < tables.slot_count; ++k) {
            const Slot& s = tables.slots[k];
            if (s.from == Source::weight) slots_[k] = const_cast<char*>(tables.weights + s.at);
            if (s.from == Source::arena) slots_[k] = arena_ + s.at;
        }
    }
    Library(const Library&) = delete;
    ~Library() {
        quire_team_free(team_);
        if (hung_) return;  // the worker that hung still has them
        operator delete[](arena_, std::align_val_t(64));
        operator delete[](scratch_, std::align_val_t(64));
    }

    // `outside`: inputs in order, then outputs. 0: done. 1: a worker hung.
    int run(void* const* outside, const index_t* lengths) {
        if (hung_) return 1;
        for (index_t k = 0; k < tables_.slot_count; ++k)
            if (tables_.slots[k].from == Source::outside)
                slots_[k] = outside[tables_.slots[k].at];
        const int code = quire_run(team_, slots_.data(), lengths, tables_.repeats, scratch_,
                                   tables_.scratch);
        if (code == 2) {  // a fork has no threads: its own
            team_ = quire_team(threads_, 60);
            return run(outside, lengths);
        }
        hung_ = code != 0;
        return code;
    }
    const char* report() const { return quire_report(team_); }

private:
    static int cores() {
        const unsigned n = std::thread::hardware_concurrency();
        return n ? int(n) : 1;
    }
    static char* room(index_t n) {
        return static_cast<char*>(operator new[](std::size_t(n) + 64, std::align_val_t(64)));
    }

    const Tables tables_;
    const int threads_;
    char *arena_, *scratch_;
    std::vector<void*> slots_;
    void* team_;
    bool hung_ = false;
};

}  // namespace quire
