#include "dispatch.h"

#include <cstdlib>
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

const kernels::Table& select_kernels(const std::string& isa) {
  std::string wanted = isa;
  if (wanted.empty())
    if (const char* env = std::getenv("LOCALSFT_ISA")) wanted = env;
  const auto all = candidates();
  const Candidate* best = nullptr;
  for (const auto& c : all) {
    if (wanted.empty() ? c.supported : wanted == c.name) best = &c;
  }
  if (best == nullptr)
    throw std::invalid_argument("unknown ISA '" + wanted + "': this machine can run " + join(available_isas()));
  if (!best->supported)
    throw std::invalid_argument("this machine can't run the ISA '" + wanted + "': it can run " +
                                join(available_isas()));
  return *best->table();
}

}  // namespace localsft
