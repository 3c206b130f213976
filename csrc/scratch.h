// Working memory of the operations: one set of growable buffers a thread, owned by the Context.
#pragma once
#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace localsft {

class Scratch {
 public:
  static constexpr int kSlots = 16;
  static constexpr std::size_t kAlignment = 64;  // bytes: a cache line, and the widest vector

  explicit Scratch(int threads) : buffers_(static_cast<std::size_t>(threads)) {}

  // At least `bytes` bytes, aligned to kAlignment, contents undefined. Valid until the next get() with the same thread
  // and slot. Slots are numbered by the operation that runs (one at a time): nothing survives an operation.
  // A thread of the pool asks only for its own buffers, so no lock is needed; `thread` 0 is the caller's own, and what
  // it gets before ThreadPool::run may be shared with the tasks as long as they use other slots.
  void* get(int thread, int slot, std::size_t bytes) {
    Buffer& buffer = buffers_[static_cast<std::size_t>(thread)][static_cast<std::size_t>(slot)];
    if (buffer.bytes < bytes) {
      buffer.memory.reset();  // first, so that the old and the new one never exist together
      buffer.bytes = 0;
      buffer.memory = allocate(bytes);
      buffer.bytes = bytes;
    }
    return buffer.memory.get();
  }
  template <typename T>
  T* array(int thread, int slot, std::size_t count) {
    return static_cast<T*>(get(thread, slot, count * sizeof(T)));
  }

  // Bytes held now, all threads together.
  std::size_t bytes() const {
    std::size_t total = 0;
    for (const auto& of_thread : buffers_)
      for (const auto& buffer : of_thread) total += buffer.bytes;
    return total;
  }

 private:
  // A product walks over hundreds of pages of 4 KB in a few microseconds, more than the nearest translation buffers
  // hold; in a virtual machine, where a translation takes many steps, that costs a third of its speed. So larger
  // buffers lie in huge pages where the system has some to give. Where it has none, nothing but the speed is lost.
  static constexpr std::size_t kHugePage = std::size_t{2} << 20, kSmall = std::size_t{128} << 10;

  struct Free {
    std::size_t alignment;
    Free() : alignment(kAlignment) {}
    explicit Free(std::size_t of) : alignment(of) {}
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{alignment}); }
  };
  using Memory = std::unique_ptr<void, Free>;
  struct Buffer {
    Memory memory;
    std::size_t bytes = 0;
  };
  // `bytes` bytes or more: rounded up to whole huge pages from kSmall on.
  static Memory allocate(std::size_t& bytes) {
#if defined(__linux__)
    if (bytes >= kSmall) {
      bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
      Memory memory(::operator new(bytes, std::align_val_t{kHugePage}), Free{kHugePage});
      madvise(memory.get(), bytes, MADV_HUGEPAGE);
      return memory;
    }
#endif
    return Memory(::operator new(bytes, std::align_val_t{kAlignment}), Free{kAlignment});
  }
  std::vector<std::array<Buffer, kSlots>> buffers_;
};

}  // namespace localsft
