#include "dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace localsft {

namespace kernels {
#define LOCALSFT_DECLARE(isa) \
  namespace isa {             \
  const Table* table();       \
  }
LOCALSFT_DECLARE(baseline)
LOCALSFT_DECLARE(avx2)
LOCALSFT_DECLARE(avx512)
LOCALSFT_DECLARE(avx512bf16)
LOCALSFT_DECLARE(neon)
#undef LOCALSFT_DECLARE
}  // namespace kernels

namespace {

struct Candidate {
  const char* name;
  const kernels::Table* (*table)();
  bool supported;
};

std::vector<Candidate> candidates() {
  std::vector<Candidate> all{{"baseline", kernels::baseline::table, true}};
#if defined(__x86_64__)
  // __builtin_cpu_supports reads CPUID and XGETBV: a CPU feature whose registers the OS does not save counts as absent.
  __builtin_cpu_init();
  const bool f16c = __builtin_cpu_supports("f16c");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
#if defined(LOCALSFT_AVX512_EMULATED)
  const bool avx512 = avx2, avx512bf16 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  all.push_back({"avx2", kernels::avx2::table, avx2});
  all.push_back({"avx512", kernels::avx512::table, avx512});
  all.push_back({"avx512bf16", kernels::avx512bf16::table, avx512bf16});
#elif defined(__aarch64__)
  all.push_back({"neon", kernels::neon::table, true});
#endif
  return all;
}

// Later ISAs of the list have wider tiles and smaller activations, so they are preferred until their products are
// clearly slower. That is not near any rate that is known: a bfloat16 product is as fast as 2 float ones on Zen 4, and
// as 1/2 on Emerald Rapids.
constexpr double kClearlySlower = 0.75;

std::vector<Rate> measure_rates() {
  constexpr int64_t kSteps = 4000;  // some tens of microseconds, so that few turns are interrupted
  constexpr int kTurns = 20;        // all ISAs in each, as the processor's clock changes meanwhile
  std::vector<const kernels::Table*> tables;
  for (const auto& c : candidates())
    if (c.supported) tables.push_back(c.table());
  std::vector<double> seconds(tables.size(), std::numeric_limits<double>::infinity());
  volatile float sink = 0;  // so that the work is done
  for (int turn = 0; turn < kTurns; ++turn)
    for (size_t i = 0; i < tables.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      sink = tables[i]->gemm.peak(kSteps);
      seconds[i] =
          std::min(seconds[i], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  static_cast<void>(sink);
  std::vector<Rate> rates;
  for (size_t i = 0; i < tables.size(); ++i)
    rates.push_back({tables[i]->name, step_flops(tables[i]->gemm) * double(kSteps) / seconds[i]});
  return rates;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto& c : candidates())
    if (c.supported) names.push_back(c.name);
  return names;
}

const std::vector<Rate>& isa_rates() {
  static const std::vector<Rate> rates = measure_rates();
  return rates;
}

std::string fastest_isa() {
  double most = 0;
  for (const Rate& rate : isa_rates()) most = std::max(most, rate.flops);
  std::string chosen;
  for (const Rate& rate : isa_rates())
    if (rate.flops >= kClearlySlower * most) chosen = rate.isa;
  return chosen;
}

const kernels::Table& select_kernels(const std::string& isa) {
  std::string wanted = isa;
  if (wanted.empty())
    if (const char* env = std::getenv("LOCALSFT_ISA")) wanted = env;
  if (wanted.empty()) wanted = fastest_isa();
  for (const auto& c : candidates()) {
    if (wanted != c.name) continue;
    if (!c.supported)
      throw std::invalid_argument("this machine can't run the ISA '" + wanted + "': it can run " +
                                  join(available_isas()));
    return *c.table();
  }
  throw std::invalid_argument("unknown ISA '" + wanted + "': this machine can run " + join(available_isas()));
}

}  // namespace localsft
