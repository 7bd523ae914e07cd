#include "cpu/isa.h"

#include <cstdlib>

#include "base/error.h"

namespace fusecell::cpu {

extern const KernelTable kernels_portable;
#if defined(FUSECELL_X86)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool usable;
};

std::vector<Candidate> candidates() {  // best first
  std::vector<Candidate> found;
#if defined(FUSECELL_X86)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  found.push_back({&kernels_avx512, avx512});
  found.push_back({&kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  found.push_back({&kernels_portable, true});
  return found;
}

std::vector<std::string> names(bool usable_only) {
  std::vector<std::string> list;
  for (const Candidate& candidate : candidates()) {
    if (candidate.usable || !usable_only) list.emplace_back(candidate.table->name);
  }
  return list;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("FUSECELL_ISA");
  std::string usable;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.usable) continue;
    if (wanted == nullptr || *wanted == '\0' || candidate.table->name == std::string(wanted)) return *candidate.table;
    if (!usable.empty()) usable += ", ";
    usable += candidate.table->name;
  }
  value_error("FUSECELL_ISA", "one of " + usable, wanted);
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

std::vector<std::string> built_isas() { return names(false); }
std::vector<std::string> usable_isas() { return names(true); }

}  // namespace fusecell::cpu
