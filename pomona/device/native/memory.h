// Arrays of a session's own, and how threads share work out.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace pomona {

inline int padded(int inputs) { return (inputs + BLOCK - 1) / BLOCK * BLOCK; }

// The part [first, last) of `count` things that a thread takes.
struct Share {
    int first, last;
    Share(int64_t count, int index, int of) : first((int)(count * index / of)), last((int)(count * (index + 1) / of)) {}
};

// Zeros on cache-line boundaries, which take no room before they are used.
class Memory {
  public:
    template <typename T>
    T *array(int64_t count) {
        void *place = std::calloc((size_t)count * sizeof(T) + 64, 1);
        if (!place) throw std::bad_alloc();
        held_.emplace_back(place, std::free);
        return (T *)(((uintptr_t)place + 63) / 64 * 64);
    }
    Quantized quantized(int64_t tokens, int inputs) {
        const int size = padded(inputs);
        return {array<int8_t>(tokens * size), array<float>(tokens * size / BLOCK), array<int32_t>(tokens * size / BLOCK)};
    }

  private:
    std::vector<std::unique_ptr<void, void (*)(void *)>> held_;
};

}  // namespace pomona
