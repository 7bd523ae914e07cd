#pragma once
// What the headers in api/ and language/ call. Only the thread that runs a kernel's thread may call the second half.

#include <cstddef>
#include <cstdint>

namespace fusecell::emulation {

struct Extent {
  unsigned x, y, z;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Kernel {
  const char* name;
  Extent grid, block;
  void (*call)(const void* arguments);
  const void* arguments;
  size_t shared_bytes = 0;  // dynamic
};

bool valid(const Kernel& kernel);  // by the limits of every device since compute capability 3.0
bool inside_kernel();
bool run(const Kernel& kernel);  // to its end; false: it failed, and last_fault() says why

void barrier(int line);
void shuffle(const void* value, void* result, size_t bytes, int lane_mask);
void load_matrices(const void* row, bool transposed, uint32_t (&part)[4]);
void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], float (*widen)(uint16_t));
void multiply_add_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4]);
uint32_t round_to_tf32(uint32_t word);
// Rows of 128 bytes, piece p of row r at place p ^ (r % 8), of which the product begins at piece `from`. Or, with
// panel_bytes, columns of such rows, 64 of them in a panel, panels being so far apart: begins at row `from`.
struct Rows {
  const void* first;
  int from;
  int panel_bytes = 0;
};
void warpgroup_multiply_add(const Rows& a, const Rows& b, float* sum, int columns_over_8, float (*widen)(uint16_t));
void commit_products();
void wait_for_products(int newest);
bool has_tensor_cores();
void* shared_array(const void* site, size_t bytes);  // the block's array of this site, made by the first who asks
void* dynamic_shared();
void copy_async(void* shared, const void* global);  // null: zeros
void copy_commit();
void copy_wait(int newest);
void copy_bulk(void* shared, const void* global, size_t bytes, uint64_t* begun);
void wait_for_bulk(const uint64_t* begun, bool odd);          // of the thread that began them; others pass
void store_global(void* to, const void* from, size_t bytes);  // at an address that is a multiple of `bytes`

}  // namespace fusecell::emulation
