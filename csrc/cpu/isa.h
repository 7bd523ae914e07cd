#pragma once
// Which instruction set the CPU backend runs on: the best one that the machine has, or FUSECELL_ISA.

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fusecell::cpu {

const KernelTable& kernels();  // throws Error if FUSECELL_ISA names one that is not there

std::vector<std::string> built_isas();
std::vector<std::string> usable_isas();

}  // namespace fusecell::cpu
