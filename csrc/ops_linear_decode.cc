#include <algorithm>

#include "ops_linear.h"

namespace localsft {

namespace {

enum Slot { kPacked, kLowRank };  // scratch buffers of the caller

// x arranged for decoding with each member, once for those that want it alike; null for those that read x itself.
std::vector<const void*> pack_decode(Context& ctx, int64_t m, const float* x, const std::vector<Member>& members) {
  constexpr int64_t kPackColumns = 256;  // per task, where x is more than a few rows
  const auto& g = ctx.kernels.gemm;
  const auto alike = [](const Matrix& a, const Matrix& b) {
    return a.kind == b.kind && a.bits == b.bits && a.group_log2 == b.group_log2;
  };
  std::vector<int64_t> at(members.size(), -1);
  int64_t bytes = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    const Matrix& weight = members[i].weight;
    const int64_t own = g.decode_bytes(&weight);
    if (own == 0) continue;
    for (size_t j = 0; j < i && at[i] < 0; ++j)
      if (at[j] >= 0 && alike(members[j].weight, weight)) at[i] = at[j];
    if (at[i] >= 0) continue;
    at[i] = bytes;
    bytes += round_up(own, int64_t(Scratch::kAlignment));
  }
  auto* memory = bytes == 0 ? nullptr : ctx.scratch.array<uint8_t>(0, kPacked, size_t(bytes));
  std::vector<const void*> packed(members.size(), nullptr);
  int64_t done = 0;  // what lies before is packed
  for (size_t i = 0; i < members.size(); ++i) {
    if (at[i] < 0) continue;
    packed[i] = memory + at[i];
    if (at[i] < done) continue;
    const int64_t k = members[i].weight.columns, columns = m > 4 ? kPackColumns : k;
    ctx.pool.run(ceil_div(k, columns), [&](int64_t task, int) {
      g.decode_pack(&members[i].weight, x, int(m), task * columns, std::min(k, (task + 1) * columns), memory + at[i]);
    });
    done = at[i] + 1;
  }
  return packed;
}

}  // namespace

void linear_decode(Context& ctx, int64_t m, const float* x, const std::vector<Member>& members,
                   const std::vector<float*>& outs) {
  if (m == 0) return;
  const auto& g = ctx.kernels.gemm;
  const int64_t k = members[0].weight.columns, rank = total_rank(members);
  auto* u = ctx.scratch.array<float>(0, kLowRank, size_t(m * rank));
  int64_t column = 0, rows = 0;
  for (const Member& member : members) {
    const Matrix a = dense(Kind::F32, member.adapter.a, member.adapter.rank, k);
    g.decode(&a, 0, member.adapter.rank, x, nullptr, int(m), u + column, rank);
    column += member.adapter.rank;
    rows += member.weight.rows;
  }
  const auto packed = pack_decode(ctx, m, x, members);
  // Blocks of output columns; many, because the members' sizes differ.
  const int64_t block = round_up(std::max<int64_t>(ceil_div(rows, 8 * ctx.pool.size()), 16), 16);
  int64_t tasks = 0;
  for (const Member& member : members) tasks += ceil_div(member.weight.rows, block);
  ctx.pool.run(tasks, [&](int64_t task, int) {
    size_t i = 0;
    int64_t first = 0;
    for (; task >= ceil_div(members[i].weight.rows, block); ++i) {
      task -= ceil_div(members[i].weight.rows, block);
      first += members[i].adapter.rank;
    }
    const Member& member = members[i];
    const int64_t n = member.weight.rows, begin = task * block, end = std::min(n, begin + block);
    g.decode(&member.weight, begin, end, x, packed[i], int(m), outs[i], n);
    if (member.adapter.rank > 0)
      g.expand(u + first, rank, member.adapter.scale, member.adapter.b, n, member.adapter.rank, begin, end, int(m),
               outs[i], n);
    if (member.factors != nullptr)
      for (int64_t row = 0; row < m; ++row)
        for (int64_t c = begin; c < end; ++c) outs[i][row * n + c] *= member.factors[c];
  });
}

void embed(Context& ctx, const Matrix& w, int64_t count, const int32_t* tokens, float* out) {
  constexpr int64_t kRowsPerTask = 32;
  ctx.pool.run(ceil_div(count, kRowsPerTask), [&](int64_t task, int) {
    for (int64_t i = task * kRowsPerTask; i < std::min(count, (task + 1) * kRowsPerTask); ++i)
      ctx.kernels.gemm.row(&w, tokens[i], out + i * w.columns);
  });
}

}  // namespace localsft
