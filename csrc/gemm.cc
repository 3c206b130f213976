#include "gemm.h"

#include <algorithm>
#include <chrono>

#include "ahead.h"
#include "panels.h"

namespace localsft {

namespace {

// Columns of a task at most: so often is a row tile used when it has come from memory. Fewer where a chunk of so many
// panels would not stay in the cache.
constexpr int64_t kMostColumns = 192;

// More tasks would make a thread wait less for another at the end, and pack more panels twice.
constexpr int64_t kTasksPerThread = 3;

// A stretch of one term's reduction, in steps.
struct Stretch {
  const Term* term;
  int64_t begin, steps;
};
using Chunk = std::vector<Stretch>;

// A part of a product that one thread computes: some neighbouring panels, a part of the row tiles of every row set.
struct Task {
  const Product* product;
  const std::vector<Chunk>* chunks;  // of the product's reduction
  int64_t column;
  int columns;
  int64_t part, parts;  // of the rows
};

int64_t steps_of(const Context& ctx, const Term& term) {
  return steps_of(ctx, term.across ? term.matrix.columns : term.matrix.rows);
}

// Cuts the stacked reduction into the fewest chunks of at most the ISA's chunk. A sum is one chain of additions within
// a chunk, and the chunks' sums are added up: a long chain would lose what is small beside its sum so far (49,152
// probabilities of 1e-9 beside one of 0.1, in the head). Cuts depend on the reduction alone, not on how the columns are
// split, and so do results. They are at multiples of 32 steps of an `across` term, which comes first. A product without
// terms has one chunk without stretches: its result is zero.
std::vector<Chunk> chunks_of(const Context& ctx, const Product& product) {
  int64_t total = 0;
  for (const Term& term : product.terms) total += steps_of(ctx, term);
  const int64_t most = ctx.kernels.gemm.chunk;
  const int64_t size = round_up(ceil_div(total, std::max<int64_t>(ceil_div(total, most), 1)), 32);
  std::vector<Chunk> chunks(1);
  int64_t room = size;
  for (const Term& term : product.terms) {
    const int64_t steps = steps_of(ctx, term);
    for (int64_t at = 0; at < steps;) {
      if (room == 0) {
        chunks.emplace_back();
        room = size;
      }
      const int64_t n = std::min(room, steps - at);
      chunks.back().push_back({&term, at, n});
      at += n;
      room -= n;
    }
  }
  return chunks;
}

// The rows of the term's matrix that a stretch reads, or its columns where those are the reduction.
struct Range {
  int64_t begin, end;
};
Range reduction_range(const Context& ctx, const Stretch& s) {
  const int64_t step = ctx.kernels.gemm.step, all = s.term->across ? s.term->matrix.columns : s.term->matrix.rows;
  return {s.begin * step, std::min((s.begin + s.steps) * step, all)};
}

// The panels of a task over one stretch that are kept, if they are.
Panels kept_panels(const Context& ctx, const Task& task, const Stretch& s) {
  return (s.term->across ? kept_across : kept_along)(ctx, s.term->matrix, task.column, s.begin);
}

// The columns of the task over one chunk, stretch by stretch: packed to `own` where they are not kept.
void pack_panels(const Context& ctx, const Task& task, const Chunk& chunk, uint32_t* own, std::vector<Panels>& panels) {
  const auto& g = ctx.kernels.gemm;
  const int lanes = int(round_up(task.columns, ctx.kernels.lanes));
  panels.clear();
  for (const Stretch& s : chunk) {
    panels.push_back(kept_panels(ctx, task, s));
    if (panels.back().units != nullptr) continue;
    panels.back() = {own, s.steps * g.panel};
    const Range range = reduction_range(ctx, s);
    (s.term->across ? g.pack_across : g.pack_along)(&s.term->matrix, task.column, task.columns, lanes, range.begin,
                                                    range.end, 1.0f, g.panel, own, panels.back().next);
    own += ceil_div(task.columns, g.panel) * panels.back().next;
  }
}

// What pack_panels will read, or the register tile of kept panels.
AheadQueue panels_ahead(const Context& ctx, const Task& task, const Chunk& chunk) {
  const int64_t width = ctx.kernels.gemm.panel;
  AheadQueue ahead;
  for (const Stretch& s : chunk) {
    const Range range = reduction_range(ctx, s);
    if (const Panels kept = kept_panels(ctx, task, s); kept.units != nullptr)
      for (int64_t p = 0; p * width < task.columns; ++p) ahead.add(kept.units + p * kept.next, s.steps * width);
    else if (s.term->across)
      ahead.add(s.term->matrix, task.column, task.columns, range.begin, range.end);
    else
      ahead.add(s.term->matrix, range.begin, range.end - range.begin, task.column, task.column + task.columns);
  }
  return ahead;
}

// The rows of one row set that a task computes, chunk by chunk of the reduction. Unfinished sums are floats: they lie
// where the result goes, or in scratch where that is bfloat16.
struct Part {
  const Rows* rows;
  int64_t first, last;  // tiles
  float* sums;          // ((last - first)·tile_rows, width), or null
};

// One chunk: the panels times the row tiles, block_rows at a time.
void multiply_chunk(Context& ctx, const Task& task, const Part& part, const Chunk& chunk, bool first_chunk,
                    bool last_chunk, const std::vector<Panels>& panels, AheadQueue& ahead) {
  const auto& g = ctx.kernels.gemm;
  const int64_t panels_of_task = ceil_div(task.columns, g.panel), width = panels_of_task * g.panel;
  const int64_t block = std::max<int64_t>(g.block_rows / g.tile_rows, 1);
  const Rows& rows = *part.rows;
  const Out& out = rows.out;
  const int64_t size = out.act && ctx.kernels.act_bf16 ? 2 : 4;
  std::vector<kernels::Segment> segments(chunk.size());
  for (int64_t begin = part.first; begin < part.last; begin += block) {
    for (int64_t p = 0; p < panels_of_task; ++p) {
      const int64_t column = task.column + p * g.panel;
      for (size_t i = 0; i < segments.size(); ++i) {
        const Stretch& s = chunk[i];
        segments[i] = {rows.packed + (begin * rows.steps + s.term->first_step + s.begin) * g.tile_rows,
                       panels[i].units + p * panels[i].next, s.steps};
      }
      const int64_t row = begin * g.tile_rows;
      auto* result = static_cast<uint8_t*>(out.data) + (row * out.stride + column) * size;
      auto* partial = part.sums != nullptr ? part.sums + (begin - part.first) * g.tile_rows * width + p * g.panel
                                           : reinterpret_cast<float*>(result);
      const int64_t partial_stride = part.sums != nullptr ? width : out.stride;
      kernels::Target target{result, out.stride, out.act, nullptr, 0};
      if (!last_chunk) target = {partial, partial_stride, false, nullptr, 0};
      if (!first_chunk || out.add) target.before = partial, target.before_stride = partial_stride;
      g.tiles(segments.data(), int(segments.size()), rows.steps * g.tile_rows,
              int(std::min(rows.count, std::min(begin + block, part.last) * g.tile_rows) - row),
              int(std::min<int64_t>(g.panel, task.columns - p * g.panel)), &target, ahead.next());
    }
  }
}

// `after`: the task that this thread will probably take next, or null.
void run_task(Context& ctx, const Task& task, const Task* after, int thread) {
  const auto& g = ctx.kernels.gemm;
  const int64_t width = round_up(task.columns, g.panel);
  const std::vector<Chunk>& chunks = *task.chunks;
  auto* own = ctx.scratch.array<uint32_t>(thread, kPanelSlot, size_t(g.chunk * width));
  std::vector<Panels> panels;
  std::vector<Part> parts;
  int64_t sums = 0;
  for (const Rows& rows : task.product->rows) {
    const int64_t tiles = ceil_div(rows.count, g.tile_rows);
    parts.push_back({&rows, tiles * task.part / task.parts, tiles * (task.part + 1) / task.parts, nullptr});
    sums += (parts.back().last - parts.back().first) * g.tile_rows * width;
  }
  if (ctx.kernels.act_bf16 && chunks.size() > 1) {
    auto* scratch = ctx.scratch.array<float>(thread, kSumSlot, size_t(sums));
    for (Part& part : parts) {
      if (part.rows->out.act) part.sums = scratch;
      scratch += (part.last - part.first) * g.tile_rows * width;
    }
  }
  for (size_t c = 0; c < chunks.size(); ++c) {
    const bool last = c + 1 == chunks.size();
    pack_panels(ctx, task, chunks[c], own, panels);
    AheadQueue ahead;
    if (!last)
      ahead = panels_ahead(ctx, task, chunks[c + 1]);
    else if (after != nullptr)
      ahead = panels_ahead(ctx, *after, after->chunks->front());
    for (const Part& part : parts) multiply_chunk(ctx, task, part, chunks[c], c == 0, last, panels, ahead);
  }
}

}  // namespace

Matrix row_range(const Matrix& m, int64_t row, int64_t count) {
  Matrix part = m;
  part.rows = count;
  part.first_row += row;
  const auto* data = static_cast<const uint8_t*>(m.data);
  if (m.kind != Kind::AFFINE) {
    part.data = data + row * m.stride * (m.kind == Kind::F32 ? 4 : 2);
    return part;
  }
  const int64_t groups = (m.columns >> m.group_log2) * row * (m.scale_kind == Kind::F32 ? 4 : 2);
  part.data = data + m.columns * m.bits / 8 * row;
  part.scales = static_cast<const uint8_t*>(m.scales) + groups;
  part.biases = static_cast<const uint8_t*>(m.biases) + groups;
  return part;
}

void multiply(Context& ctx, const std::vector<Product>& products, const Tasks& also) {
  const auto& g = ctx.kernels.gemm;
  const int64_t threads = ctx.pool.size();
  int64_t panels = 0;
  for (const Product& product : products) panels += ceil_div(product.columns, g.panel);
  const int64_t all_panels = panels, least = threads == 1 ? 2 : g.least_panels;
  const int64_t widest = std::min(kMostColumns, g.cached / g.chunk) / g.panel;
  // Wide tasks first (packing several panels at once reads whole cache lines of the weights, and their row tiles are
  // used several times), narrow ones last, so that no thread waits long for another. An even number of panels is a
  // whole number of quantization groups; a single one ends sooner. Where the panels are few, parts of the rows make
  // more tasks; each packs its own panels.
  const auto parts_of = [&](int64_t rows) {
    const int64_t pairs = ceil_div(std::max<int64_t>(all_panels, 1), 2);
    const int64_t wanted = threads == 1 ? 1 : ceil_div(kTasksPerThread * threads, pairs);
    return std::clamp<int64_t>(rows / 64, 1, wanted);
  };
  std::vector<std::vector<Chunk>> chunks;
  for (const Product& product : products) chunks.push_back(chunks_of(ctx, product));
  std::vector<Task> tasks;
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& product = products[i];
    int64_t most = 0;
    for (const Rows& rows : product.rows) most = std::max(most, rows.count);
    const int64_t parts = parts_of(most);
    for (int64_t column = 0; column < product.columns;) {
      const int64_t share = std::clamp<int64_t>(panels / (2 * threads), least, widest);
      const int64_t wide = share == 1 ? 1 : share / 2 * 2;
      const int columns = int(std::min(wide * g.panel, product.columns - column));
      for (int64_t part = 0; part < parts; ++part)
        tasks.push_back({&product, &chunks[i], column, columns, part, parts});
      column += columns;
      panels -= wide;
    }
  }
  const auto count = int64_t(tasks.size());
  ctx.pool.run(count + also.count, [&](int64_t task, int thread) {
    if (task < count)
      run_task(ctx, tasks[size_t(task)], task + threads < count ? &tasks[size_t(task + threads)] : nullptr, thread);
    else
      also.run(task - count, thread);
  });
}

double peak_flops(Context& ctx) {
  const auto& g = ctx.kernels.gemm;
  constexpr int64_t kSteps = 100000;  // some milliseconds
  constexpr int kRepeats = 5;         // the fastest is the least disturbed
  double best = 0;
  volatile float sink = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    ctx.pool.run(4 * ctx.pool.size(), [&](int64_t, int) { sink = g.peak(kSteps); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, kernels::step_flops(g) * double(kSteps) * 4 * ctx.pool.size() / seconds);
  }
  return best;
}

}  // namespace localsft
