// The kernels of cpu/bfloat16_kernels.h, once on plain C++ and once on AMX's instructions: their results must have the
// same bits. A processor that lacks AMX traps at each of the instructions, and a handler takes its place: it reads what
// the compiler made of them, registers, addresses and strides, and does with bytes what Intel's manual says of them.

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/bfloat16_kernels.h"

namespace fusecell::cpu {
namespace {

// ------------------------------------------------------------------------------------------------ in AMX's place
uint8_t registers[8][16][64];
bool configured = false;
long caught = 0;

[[noreturn]] void fail(const char* what) {
  std::printf("%s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

// VEX with three bytes of prefix, an opcode and the operands: base, index and displacement, or registers.
struct Instruction {
  int prefix, opcode, third, reg, rm, length;  // third: the register that the prefix names
  bool memory;
  uint8_t* address = nullptr;  // base + displacement
  int64_t index = 0;

  Instruction(const uint8_t* code, const greg_t* general) {
    static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                       REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    if (code[0] != 0xC4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) fail("an instruction that is not AMX's");
    prefix = code[2] & 3;
    third = (~code[2] >> 3) & 15;
    opcode = code[3];
    reg = (code[4] >> 3) & 7;
    rm = code[4] & 7;
    const int mode = code[4] >> 6;
    memory = mode != 3;
    length = 5;
    if (!memory) return;
    int base = rm;
    if (rm == 4) {
      const uint8_t sib = code[length++];
      const int at = ((sib >> 3) & 7) | (code[1] & 0x40 ? 0 : 8);
      if (at != 4) index = general[kOrder[at]] << (sib >> 6);
      base = sib & 7;
    }
    if (mode == 0 && base == 5) fail("an address that is not relative to a register");
    int32_t displacement = 0;
    if (mode == 1) displacement = static_cast<int8_t>(code[length]);
    if (mode == 2) std::memcpy(&displacement, code + length, 4);
    length += mode == 1 ? 1 : mode == 2 ? 4 : 0;
    address = reinterpret_cast<uint8_t*>(general[kOrder[base | (code[1] & 0x20 ? 0 : 8)]] + displacement);
  }

  bool is(int of_prefix, int of_opcode, bool of_memory) const {
    return prefix == of_prefix && opcode == of_opcode && memory == of_memory;
  }
};

void configure(const uint8_t* config) {
  uint8_t expected[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    expected[16 + 2 * tile] = 64;
    expected[48 + tile] = 16;
  }
  if (std::memcmp(config, expected, 64) != 0) fail("tiles that are not 16 rows of 64 bytes");
  configured = true;
}

void copy_rows(uint8_t* to, int64_t to_bytes, const uint8_t* from, int64_t from_bytes) {
  for (int row = 0; row < 16; ++row) std::memcpy(to + row * to_bytes, from + row * from_bytes, 64);
}

// With the numbers of registers that the instruction names.
void dot(int sums, int left, int right) {
  PlainTiles tiles;
  const int of[] = {sums, left, right};
  for (int i = 0; i < 3; ++i) std::memcpy(tiles.bytes[i], registers[of[i]], sizeof registers[0]);
  tile_dot_bf16(tiles, TileName<0>{}, TileName<1>{}, TileName<2>{});
  std::memcpy(registers[sums], tiles.bytes[0], sizeof registers[0]);
}

void execute(const Instruction& instruction) {
  constexpr int kNone = 0, kF3 = 2, kF2 = 3;
  uint8_t* tile = registers[instruction.reg][0];
  if (instruction.is(kNone, 0x49, true)) return configure(instruction.address);
  if (!configured) fail("a tile before tile_config");
  if (instruction.is(kNone, 0x49, false)) {
    configured = false;
  } else if (instruction.is(kF2, 0x49, false)) {
    std::memset(tile, 0, sizeof registers[0]);
  } else if (instruction.is(kF2, 0x4B, true)) {
    copy_rows(tile, 64, instruction.address, instruction.index);
  } else if (instruction.is(kF3, 0x4B, true)) {
    copy_rows(instruction.address, instruction.index, tile, 64);
  } else if (instruction.is(kF3, 0x5C, false) && instruction.third < 8) {
    dot(instruction.reg, instruction.rm, instruction.third);
  } else {
    fail("an instruction that is not AMX's");
  }
}

void trapped(int, siginfo_t*, void* context) {
  greg_t* general = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction instruction(reinterpret_cast<const uint8_t*>(general[REG_RIP]), general);
  execute(instruction);
  general[REG_RIP] += instruction.length;
  ++caught;
}

// -------------------------------------------------------------------------------------------------- the two kernels
std::vector<bfloat16> draw(std::mt19937& bits, size_t count) {
  std::normal_distribution<float> normal;
  std::vector<bfloat16> values(count);
  for (bfloat16& value : values) value = narrow<bfloat16>(normal(bits));
  return values;
}

// Two sources, 37 rows of z, 3 image rows of which columns 2 to 37 are computed: tiles whole and cut, an odd number.
template <class Tiles>
std::vector<float> product() {
  constexpr int64_t kRows = 37, kPitch = 48, kPlane = 5 * kPitch + kSide;
  std::mt19937 bits(1);
  const std::vector<bfloat16> x = draw(bits, 2 * kDepth * kPlane), h = draw(bits, kDepth * kPlane);
  const int64_t offset[] = {0, kDepth * kPlane + 2 * (kPitch + 1), 2 * kPitch};
  const std::vector<bfloat16> weights = draw(bits, 2 * 3 * 2 * kSide * kDepth);
  std::vector<float> z(kRows * 3 * 35);
  bfloat16_product<Tiles>({{{x.data(), offset, 2, kPlane, kPitch}, {h.data(), offset + 2, 1, kPlane, kPitch}},
                           weights.data(),
                           0,
                           kRows,
                           1,
                           4,
                           2,
                           37,
                           z.data()});
  return z;
}

template <class Tiles>
std::vector<float> gradient() {
  constexpr int64_t kPlane = 100, kPixels = 64;
  std::mt19937 bits(2);
  const std::vector<bfloat16> x = draw(bits, 3 * 2 * kSide * kPlane), dz = draw(bits, 3 * 2 * kSide * kPixels);
  const uint8_t active[] = {1, 0, 1};
  std::vector<float> sums(4 * kSide * kSide, 0.5f);
  bfloat16_gradient<Tiles>(
      {x.data() + 7, dz.data(), 2 * kSide * kPlane, 2 * kSide * kPixels, kPlane, active, 3, kPixels, sums.data()});
  return sums;
}

int run() {
  struct sigaction action = {};
  action.sa_sigaction = trapped;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  syscall(SYS_arch_prctl, 0x1023L, 18L);  // the processor's own, where it has them and the system agrees
  if (product<PlainTiles>() != product<AmxTiles>()) fail("product: other bits");
  if (gradient<PlainTiles>() != gradient<AmxTiles>()) fail("gradient: other bits");
  if (configured) fail("tiles that are not released");
  if (caught) {
    std::printf("same bits, %ld instructions caught\n", caught);
  } else {
    std::printf("same bits, by the processor\n");
  }
  return 0;
}

}  // namespace
}  // namespace fusecell::cpu

int main() { return fusecell::cpu::run(); }
