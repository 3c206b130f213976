#include <algorithm>

#include "ops_linear.h"

namespace localsft {

namespace {

enum Slot { kPacked, kLowRank };  // scratch buffers of the caller

// Rows of x up to which what comes before the product with the weights is less work than waking the other threads.
constexpr int64_t kFewRows = 4;

// What the product of x with the members' weights needs: u (m, ΣR) = x·aᵀ of their adapters side by side, and x
// arranged for decoding with each, once for those that want it alike; null for those that read x itself.
struct Prepared {
  const float* u;
  std::vector<const void*> packed;
};

Prepared prepare(Context& ctx, int64_t m, const float* x, const std::vector<Member>& members) {
  constexpr int64_t kPackColumns = 256;  // per task
  const auto& g = ctx.kernels.gemm;
  const int64_t k = members[0].weight.columns, rank = total_rank(members);
  const auto alike = [](const Matrix& a, const Matrix& b) {
    return a.kind == b.kind && a.bits == b.bits && a.group_log2 == b.group_log2;
  };
  std::vector<int64_t> at(members.size(), -1);
  std::vector<size_t> packing;  // the first of those that are alike
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
    packing.push_back(i);
  }
  auto* memory = bytes == 0 ? nullptr : ctx.scratch.array<uint8_t>(0, kPacked, size_t(bytes));
  auto* u = ctx.scratch.array<float>(0, kLowRank, size_t(m * rank));

  struct Task {
    const Member* member;
    bool low_rank;
    int64_t at, begin, end;  // fills u from column `at` on, or packs the columns [begin, end) to byte `at`
  };
  std::vector<Task> tasks;
  int64_t column = 0;
  for (const Member& member : members) {
    if (member.adapter.rank > 0) tasks.push_back({&member, true, column, 0, k});
    column += member.adapter.rank;
  }
  for (const size_t i : packing)
    for (int64_t begin = 0; begin < k; begin += kPackColumns)
      tasks.push_back({&members[i], false, at[i], begin, std::min(k, begin + kPackColumns)});
  const auto run = [&](int64_t number, int) {
    const Task& task = tasks[size_t(number)];
    const Adapter& adapter = task.member->adapter;
    if (task.low_rank) {
      const Matrix a = dense(Kind::F32, adapter.a, adapter.rank, k);
      g.decode(&a, 0, adapter.rank, x, nullptr, int(m), u + task.at, rank);
    } else {
      g.decode_pack(&task.member->weight, x, int(m), task.begin, task.end, memory + task.at);
    }
  };
  if (m > kFewRows)
    ctx.pool.run(int64_t(tasks.size()), run);
  else
    for (size_t i = 0; i < tasks.size(); ++i) run(int64_t(i), 0);

  std::vector<const void*> packed(members.size(), nullptr);
  for (size_t i = 0; i < members.size(); ++i)
    if (at[i] >= 0) packed[i] = memory + at[i];
  return {u, packed};
}

}  // namespace

void linear_decode(Context& ctx, int64_t m, const float* x, const std::vector<Member>& members,
                   const std::vector<float*>& outs) {
  if (m == 0) return;
  const auto& g = ctx.kernels.gemm;
  const int64_t rank = total_rank(members);
  int64_t rows = 0;
  for (const Member& member : members) rows += member.weight.rows;
  const Prepared prepared = prepare(ctx, m, x, members);
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
    g.decode(&member.weight, begin, end, x, prepared.packed[i], int(m), outs[i], n);
    if (member.adapter.rank > 0)
      g.expand(prepared.u + first, rank, member.adapter.scale, member.adapter.b, n, member.adapter.rank, begin, end,
               int(m), outs[i], n);
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
