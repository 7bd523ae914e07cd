#pragma once
// Which instruction set the CPU backend runs on: the best one that the machine has, or FUSECELL_ISA.

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fusecell::cpu {

const KernelTable& kernels();  // throws Error if FUSECELL_ISA names one that is not there

// Products of bfloat16 on AMX, or on what stands for it if FUSECELL_EMULATE_AMX is 1; null where neither is to be had.
// Asks the system for AMX's registers, so only those call it who want them.
const Bfloat16Kernels* bfloat16_kernels();
bool emulates_amx();  // throws Error if FUSECELL_EMULATE_AMX is neither 0 nor 1
const char* amx();    // "usable", "emulated", "refused" by the system, or "absent"

std::vector<std::string> built_isas();
std::vector<std::string> usable_isas();

}  // namespace fusecell::cpu
