#include "ops_linear.h"

#include <algorithm>

namespace localsft {

namespace {

// Slots of the scratch buffers of the caller (thread 0) and of each thread.
enum Slot { kRows, kLowRankPanels, kDu, kLoraRows };

// Rows that are packed and multiplied at a time: few enough for their packed form to stay near the cores, enough to
// make dequantization cheap.
constexpr int64_t kPackedUnits = 4 << 20, kMinRows = 512, kMaxRows = 1024;

// Steps of backward's reduction that are packed and multiplied at a time, at most.
constexpr int64_t kSlabSteps = 4096;

// Into how many equal blocks m rows with a reduction of that many steps are cut.
int64_t row_blocks(int64_t m, int64_t steps) {
  return ceil_div(m, std::clamp(kPackedUnits / std::max<int64_t>(steps, 1), kMinRows, kMaxRows));
}

const uint8_t* act_row(const Context& ctx, const void* x, int64_t row, int64_t columns) {
  return static_cast<const uint8_t*>(x) + row * columns * (ctx.kernels.act_bf16 ? 2 : 4);
}

// The products x·aᵀ for the adapters' a (rank, reduction): panels of tile columns packed once, used for some row tiles
// at a time.
class LowRank {
 public:
  // Packs to `to`, units(ctx, ...) of them.
  LowRank(const Context& ctx, const float* a, int64_t rank, int64_t reduction, uint32_t* to)
      : g_(ctx.kernels.gemm), rank_(rank), steps_(steps_of(ctx, reduction)), panels_(to) {
    const Matrix m = dense(Kind::F32, a, rank, reduction);
    for (int64_t r = 0; r < rank; r += g_.panel) {
      const int count = int(std::min<int64_t>(g_.panel, rank - r));
      g_.pack_across(&m, r, count, int(round_up(count, ctx.kernels.lanes)), 0, reduction, 1.0f, g_.panel,
                     to + r * steps_, 0);
    }
  }
  static int64_t units(const Context& ctx, int64_t rank, int64_t reduction) {
    return round_up(rank, ctx.kernels.gemm.panel) * steps_of(ctx, reduction);
  }
  // out (rows, rank) = the packed tiles, `next` units apart, · aᵀ.
  void multiply(const uint32_t* tiles, int64_t next, int rows, float* out, int64_t stride) const {
    add(tiles, next, 0, steps_, rows, out, stride);
  }
  // out (rows, rank) = or, from the second step on, += the packed tiles · the steps [begin, begin + steps) of aᵀ.
  void add(const uint32_t* tiles, int64_t next, int64_t begin, int64_t steps, int rows, float* out,
           int64_t stride) const {
    for (int row = 0; row < rows; row += int(g_.block_rows)) {
      for (int64_t r = 0; r < rank_; r += g_.panel) {
        const kernels::Segment segment{tiles + row / g_.tile_rows * next, panels_ + r * steps_ + begin * g_.panel,
                                       steps};
        float* to = out + row * stride + r;
        const kernels::Target target{to, stride, false, begin == 0 ? nullptr : to, stride};
        g_.tiles(&segment, 1, next, int(std::min<int64_t>(g_.block_rows, rows - row)),
                 int(std::min<int64_t>(g_.panel, rank_ - r)), &target, nullptr);
      }
    }
  }

 private:
  const kernels::GemmTable& g_;
  int64_t rank_, steps_;
  uint32_t* panels_;
};

// The adapted members' low-rank panels, one after the other in scratch.
std::vector<LowRank> pack_low_rank(Context& ctx, const std::vector<Member>& members, bool b) {
  int64_t units = 0;
  for (const Member& member : members)
    units += LowRank::units(ctx, member.adapter.rank, b ? member.weight.rows : member.weight.columns);
  auto* to = ctx.scratch.array<uint32_t>(0, kLowRankPanels, size_t(units));
  std::vector<LowRank> low_rank;
  for (const Member& member : members) {
    const int64_t reduction = b ? member.weight.rows : member.weight.columns;
    low_rank.emplace_back(ctx, b ? member.adapter.b : member.adapter.a, member.adapter.rank, reduction, to);
    to += LowRank::units(ctx, member.adapter.rank, reduction);
  }
  return low_rank;
}

int64_t total_rows(const std::vector<Member>& members) {
  int64_t rows = 0;
  for (const Member& member : members) rows += member.weight.rows;
  return rows;
}

// Steps of all adapters' low-rank columns in a packed row tile.
int64_t low_rank_steps(const Context& ctx, const std::vector<Member>& members) {
  int64_t steps = 0;
  for (const Member& member : members) steps += steps_of(ctx, member.adapter.rank);
  return steps;
}

// Tiles of rows per task while packing: a task is a few microseconds at least, and the low-rank products take so many
// tiles at once.
constexpr int64_t kTilesPerTask = 3;

void forward_block(Context& ctx, int64_t m, const void* x, const void* x_lora, const std::vector<Member>& members,
                   const std::vector<LowRank>& low_rank, float* u, const std::vector<Out>& outs) {
  const auto& g = ctx.kernels.gemm;
  const int64_t k = members[0].weight.columns, k_steps = steps_of(ctx, k), rank = total_rank(members);
  const int64_t steps = k_steps + low_rank_steps(ctx, members);
  auto* packed = ctx.scratch.array<uint32_t>(0, kRows, size_t(packed_units(ctx, m, steps)));
  const Matrix mx = dense(act_kind(ctx), x, m, k), mx_lora = dense(act_kind(ctx), x_lora, m, k);

  // Each row tile: [x | scale₁·u₁ | scale₂·u₂ ...].
  const int64_t task_rows = kTilesPerTask * g.tile_rows, next = steps * g.tile_rows;
  ctx.pool.run(ceil_div(m, task_rows), [&](int64_t task, int thread) {
    const int64_t row = task * task_rows;
    const int count = int(std::min(task_rows, m - row)), lanes = int(round_up(count, g.tile_rows));
    uint32_t* tiles = packed + row * steps;
    g.pack_across(&mx, row, count, lanes, 0, k, 1.0f, g.tile_rows, tiles, next);
    if (rank == 0) return;
    const uint32_t* from = tiles;
    int64_t from_next = next;
    if (x_lora != x) {
      auto* other = ctx.scratch.array<uint32_t>(thread, kLoraRows, size_t(k_steps * task_rows));
      from_next = k_steps * g.tile_rows;
      g.pack_across(&mx_lora, row, count, lanes, 0, k, 1.0f, g.tile_rows, other, from_next);
      from = other;
    }
    const Matrix mu = dense(Kind::F32, u, m, rank);
    int64_t column = 0, step = k_steps;
    for (size_t i = 0; i < members.size(); ++i) {
      const Adapter& adapter = members[i].adapter;
      low_rank[i].multiply(from, from_next, count, u + row * rank + column, rank);
      g.pack_across(&mu, row, count, lanes, column, column + adapter.rank, adapter.scale, g.tile_rows,
                    tiles + step * g.tile_rows, next);
      column += adapter.rank;
      step += steps_of(ctx, adapter.rank);
    }
  });

  std::vector<Product> products;
  int64_t step = k_steps;
  for (size_t i = 0; i < members.size(); ++i) {
    const Member& member = members[i];
    Product product{{{member.weight, true, 0}}, member.weight.rows, {{packed, steps, m, outs[i]}}};
    if (member.adapter.rank > 0)
      product.terms.push_back(
          {dense(Kind::F32, member.adapter.b, member.adapter.rank, member.weight.rows), false, step});
    step += steps_of(ctx, member.adapter.rank);
    products.push_back(std::move(product));
  }
  multiply(ctx, products);
}

// d_a_i += du_iᵀ·x and d_b_i += scale_i·u_iᵀ·dy_i, over all rows; a task is a block of columns of x, for all members,
// or of one dy.
Tasks low_rank_gradients(const Context& ctx, int64_t m, const std::vector<const void*>& dys,
                         const std::vector<Member>& members, const void* x, const float* u, const float* du) {
  constexpr int64_t kMostColumns = 512;  // per task: in rows so long that hardware fetches them ahead
  const int64_t rank = total_rank(members), size = ctx.kernels.act_bf16 ? 2 : 4;
  struct Sum {  // out (rank, columns) += scale·sᵀ·x
    const float* s;
    int64_t rank;
    float scale;
    float* out;
  };
  struct Input {
    const void* x;
    int64_t columns;
    std::vector<Sum> sums;
    int64_t per_task() const { return round_up(ceil_div(columns, ceil_div(columns, kMostColumns)), 64); }
    int64_t tasks() const { return ceil_div(columns, per_task()); }
  };
  std::vector<Input> inputs{{x, members[0].weight.columns, {}}};
  int64_t column = 0, tasks = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    const Adapter& adapter = members[i].adapter;
    if (adapter.rank == 0) continue;
    inputs.front().sums.push_back({du + column, adapter.rank, 1.0f, adapter.d_a});
    inputs.push_back({dys[i], members[i].weight.rows, {{u + column, adapter.rank, adapter.scale, adapter.d_b}}});
    column += adapter.rank;
  }
  if (rank == 0) return {};
  for (const Input& input : inputs) tasks += input.tasks();
  auto run = [=, &ctx, inputs = std::move(inputs)](int64_t task, int) {
    size_t i = 0;
    for (; task >= inputs[i].tasks(); ++i) task -= inputs[i].tasks();
    const Input& input = inputs[i];
    const int64_t begin = task * input.per_task(), count = std::min(input.per_task(), input.columns - begin);
    for (const Sum& sum : input.sums)
      ctx.kernels.gemm.outer(static_cast<const uint8_t*>(input.x) + begin * size, input.columns, sum.s, rank, sum.rank,
                             m, count, sum.scale, sum.out + begin, input.columns);
  };
  return {tasks, std::move(run)};
}

// Rows [begin, end) of a member's weight, a part of backward's reduction.
struct Piece {
  size_t member;
  int64_t begin, end;
};
using Slab = std::vector<Piece>;

// Cuts backward's reduction, all members' rows one after the other, into the fewest slabs of about equal size that are
// no longer than kSlabSteps, so that a slab of all rows' gradients is still in the cache when it is multiplied. Cuts
// depend on the reduction alone, and so do results. Where `whole`, one slab.
std::vector<Slab> slabs_of(const Context& ctx, const std::vector<Member>& members, bool whole) {
  int64_t room = total_rows(members);
  if (!whole) {
    const int64_t unit = 32 * ctx.kernels.gemm.step, most = kSlabSteps * ctx.kernels.gemm.step;
    room = round_up(ceil_div(room, ceil_div(room, most)), unit);
  }
  const int64_t size = room;
  std::vector<Slab> slabs(1);
  for (size_t i = 0; i < members.size(); ++i) {
    const int64_t rows = members[i].weight.rows;
    for (int64_t at = 0, count; at < rows; at += count, room -= count) {
      if (room == 0) {
        slabs.emplace_back();
        room = size;
      }
      count = std::min(room, rows - at);
      slabs.back().push_back({i, at, at + count});
    }
  }
  return slabs;
}

int64_t slab_steps(const Context& ctx, const Slab& slab) {
  int64_t steps = 0;
  for (const Piece& piece : slab) steps += steps_of(ctx, piece.end - piece.begin);
  return steps;
}

// Row tiles of a slab: [dy₁ | dy₂ ...], and the last slab's: [dy₁ | dy₂ ... | du₁ | du₂ ...]; du_i = scale_i·dy_i·b_iᵀ
// is summed up slab by slab.
void pack_slab(Context& ctx, int64_t m, const std::vector<const void*>& dys, const std::vector<Member>& members,
               const std::vector<LowRank>& low_rank, const Slab& slab, bool last, int64_t steps, float* du,
               uint32_t* packed) {
  const auto& g = ctx.kernels.gemm;
  const int64_t rank = total_rank(members), task_rows = kTilesPerTask * g.tile_rows, next = steps * g.tile_rows;
  std::vector<int64_t> columns{0};  // where each member's begin in du
  for (const Member& member : members) columns.push_back(columns.back() + member.adapter.rank);
  ctx.pool.run(ceil_div(m, task_rows), [&](int64_t task, int) {
    const int64_t row = task * task_rows;
    const int count = int(std::min(task_rows, m - row)), lanes = int(round_up(count, g.tile_rows));
    uint32_t* to = packed + row * steps;
    for (const Piece& piece : slab) {
      const Member& member = members[piece.member];
      const Adapter& adapter = member.adapter;
      const Matrix dy = dense(act_kind(ctx), dys[piece.member], m, member.weight.rows);
      const int64_t piece_steps = steps_of(ctx, piece.end - piece.begin);
      g.pack_across(&dy, row, count, lanes, piece.begin, piece.end, 1.0f, g.tile_rows, to, next);
      if (adapter.rank > 0) {
        float* sums = du + row * rank + columns[piece.member];
        low_rank[piece.member].add(to, next, piece.begin / g.step, piece_steps, count, sums, rank);
        for (int r = 0; r < count && piece.end == member.weight.rows; ++r)
          for (int64_t c = 0; c < adapter.rank; ++c) sums[r * rank + c] *= adapter.scale;
      }
      to += piece_steps * g.tile_rows;
    }
    const Matrix mdu = dense(Kind::F32, du, m, rank);
    for (size_t i = 0; i < members.size() && last; ++i) {
      const int64_t own = members[i].adapter.rank;
      if (own == 0) continue;
      g.pack_across(&mdu, row, count, lanes, columns[i], columns[i] + own, 1.0f, g.tile_rows, to, next);
      to += steps_of(ctx, own) * g.tile_rows;
    }
  });
}

void backward_block(Context& ctx, int64_t m, const std::vector<const void*>& dys, const std::vector<Member>& members,
                    const std::vector<LowRank>& low_rank, const std::vector<Slab>& slabs, const void* x, const float* u,
                    Out dx, float* dx_lora) {
  const int64_t k = members[0].weight.columns;
  auto* du = ctx.scratch.array<float>(0, kDu, size_t(m * total_rank(members)));
  for (const Slab& slab : slabs) {
    const bool last = &slab == &slabs.back();
    const int64_t steps = slab_steps(ctx, slab) + (last ? low_rank_steps(ctx, members) : 0);
    auto* packed = ctx.scratch.array<uint32_t>(0, kRows, size_t(packed_units(ctx, m, steps)));
    pack_slab(ctx, m, dys, members, low_rank, slab, last, steps, du, packed);

    Product to_dx{{}, k, {{packed, steps, m, dx}}};
    Product to_dx_lora{{}, k, {{packed, steps, m, {dx_lora, k, false, false}}}};
    int64_t step = 0;
    for (const Piece& piece : slab) {
      const int64_t rows = piece.end - piece.begin;
      to_dx.terms.push_back({row_range(members[piece.member].weight, piece.begin, rows), false, step});
      step += steps_of(ctx, rows);
    }
    for (const Member& member : members) {
      const Adapter& adapter = member.adapter;
      if (adapter.rank == 0 || !last) continue;
      (dx_lora != nullptr ? to_dx_lora : to_dx)
          .terms.push_back({dense(Kind::F32, adapter.a, adapter.rank, k), false, step});
      step += steps_of(ctx, adapter.rank);
    }
    std::vector<Product> products;
    if (dx.data != nullptr) products.push_back(std::move(to_dx));
    if (dx_lora != nullptr && last) products.push_back(std::move(to_dx_lora));
    multiply(ctx, products, last ? low_rank_gradients(ctx, m, dys, members, x, u, du) : Tasks{});
    dx.add = true;
  }
}

}  // namespace

void linear_forward(Context& ctx, int64_t m, const void* x, const void* x_lora, const std::vector<Member>& members,
                    float* u, const std::vector<Out>& outs) {
  if (m == 0) return;
  const int64_t k = members[0].weight.columns, rank = total_rank(members), blocks = row_blocks(m, steps_of(ctx, k));
  const auto low_rank = pack_low_rank(ctx, members, false);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = m * block / blocks, end = m * (block + 1) / blocks;
    std::vector<Out> parts = outs;
    for (Out& part : parts)
      part.data = static_cast<uint8_t*>(part.data) + begin * part.stride * (part.act && ctx.kernels.act_bf16 ? 2 : 4);
    const void* x_part = act_row(ctx, x, begin, k);
    forward_block(ctx, end - begin, x_part, x_lora == x ? x_part : act_row(ctx, x_lora, begin, k), members, low_rank,
                  u + begin * rank, parts);
  }
}

void linear_backward(Context& ctx, int64_t m, const std::vector<const void*>& dys, const std::vector<Member>& members,
                     const void* x, const float* u, Out dx, float* dx_lora) {
  if (m == 0) return;
  const int64_t k = members[0].weight.columns, rank = total_rank(members);
  // A sum of bfloat16 results would be rounded slab by slab.
  const auto slabs = slabs_of(ctx, members, dx.act && ctx.kernels.act_bf16);
  const int64_t blocks = row_blocks(m, slab_steps(ctx, slabs.front()));
  const auto low_rank = pack_low_rank(ctx, members, true);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = m * block / blocks, end = m * (block + 1) / blocks;
    std::vector<const void*> parts;
    for (size_t i = 0; i < members.size(); ++i) parts.push_back(act_row(ctx, dys[i], begin, members[i].weight.rows));
    Out dx_part = dx;
    if (dx.data != nullptr)
      dx_part.data = static_cast<uint8_t*>(dx.data) + begin * k * (dx.act && ctx.kernels.act_bf16 ? 2 : 4);
    backward_block(ctx, end - begin, parts, members, low_rank, slabs, act_row(ctx, x, begin, k), u + begin * rank,
                   dx_part, dx_lora == nullptr ? nullptr : dx_lora + begin * k);
  }
}

}  // namespace localsft
