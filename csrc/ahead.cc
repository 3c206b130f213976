#include "ahead.h"

namespace localsft {

namespace {

constexpr int64_t kLine = 64;  // bytes of a cache line, or a part of one

}  // namespace

void AheadQueue::add(const kernels::Matrix& m, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  if (rows <= 0 || begin >= end) return;
  const auto block = [&](const void* data, int64_t row_bits, int64_t bits) {
    const int64_t from = begin * bits / 8, to = (end * bits + 7) / 8;
    add_block(static_cast<const uint8_t*>(data) + row * (row_bits / 8) + from, rows, to - from, row_bits / 8);
  };
  if (m.kind != kernels::Kind::AFFINE) {
    const int64_t bits = m.kind == kernels::Kind::F32 ? 32 : 16;
    return block(m.data, m.stride * bits, bits);
  }
  block(m.data, m.columns * m.bits, m.bits);
  const int64_t bytes = m.scale_kind == kernels::Kind::F32 ? 4 : 2, groups = m.columns >> m.group_log2;
  const int64_t first = begin >> m.group_log2, count = ((end - 1) >> m.group_log2) + 1 - first;
  for (const void* values : {m.scales, m.biases})
    add_block(static_cast<const uint8_t*>(values) + (row * groups + first) * bytes, rows, count * bytes,
              groups * bytes);
}

void AheadQueue::add_block(const void* first, int64_t rows, int64_t bytes, int64_t stride) {
  const auto* p = static_cast<const uint8_t*>(first);
  if (bytes == stride) {
    const auto into = int64_t(reinterpret_cast<uintptr_t>(p) % kLine);
    stretches_.push_back({p, kLine, (into + rows * bytes + kLine - 1) / kLine});
    return;
  }
  int64_t line = 0;
  for (; line < bytes; line += kLine) stretches_.push_back({p + line, stride, rows});
  // What is not at the start of a line may reach one more.
  if (stride % kLine != 0 || reinterpret_cast<uintptr_t>(p) % kLine + uintptr_t(bytes) > uintptr_t(line))
    stretches_.push_back({p + bytes - 1, stride, rows});
}

kernels::Ahead* AheadQueue::next() {
  while (at_ < stretches_.size() && stretches_[at_].count <= 0) ++at_;
  return at_ < stretches_.size() ? &stretches_[at_] : nullptr;
}

}  // namespace localsft
