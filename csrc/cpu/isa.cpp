#include "cpu/isa.h"

#if defined(FUSECELL_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>

#include "base/error.h"
#include "problem/backend.h"

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

// -------------------------------------------------------------------------------------------------------------- AMX
#if defined(FUSECELL_X86) && defined(__linux__)
bool has_amx() { return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16"); }

// Linux keeps the 8 KB of tiles only for processes that have asked, once for all their threads.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool has_amx() { return false; }
bool may_use_amx() { return false; }
#endif

const Bfloat16Kernels* choose_bfloat16_kernels() {
  if (emulates_amx()) return &kernels().plain_tiles;
  return has_amx() && may_use_amx() ? &kernels().amx_tiles : nullptr;
}

}  // namespace

const Bfloat16Kernels* bfloat16_kernels() {
  static const Bfloat16Kernels* const chosen = choose_bfloat16_kernels();
  return chosen;
}

bool emulates_amx() {
  const char* wanted = std::getenv("FUSECELL_EMULATE_AMX");
  const std::string value = wanted == nullptr ? "" : wanted;
  if (value != "" && value != "0" && value != "1") value_error("FUSECELL_EMULATE_AMX", "0 or 1", value);
  return value == "1";
}

const char* amx() {
  if (bfloat16_kernels() == &kernels().plain_tiles) return "emulated";
  if (bfloat16_kernels()) return "usable";
  return has_amx() ? "refused" : "absent";
}

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

std::vector<std::string> built_isas() { return names(false); }
std::vector<std::string> usable_isas() { return names(true); }

}  // namespace fusecell::cpu

std::string fusecell::backend::bfloat16_obstacle() {
  if (cpu::bfloat16_kernels()) return "";
  return cpu::has_amx() ? "a system that refuses AMX's registers"
                        : "a processor without AMX (FUSECELL_EMULATE_AMX=1 computes the same, slowly)";
}
