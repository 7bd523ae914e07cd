#pragma once
// FUSECELL_HD marks a function that runs on the host and on the device. `static` on purpose: the CPU loops are compiled
// once per instruction set, and an inline function with external linkage would be merged across those objects,
// so that a machine without AVX-512 could be handed the AVX-512 copy.

#if defined(__CUDACC__)
#define FUSECELL_HD static __host__ __device__ __forceinline__
#define FUSECELL_HD_METHOD __host__ __device__ __forceinline__
#else
#define FUSECELL_HD static inline __attribute__((always_inline))
#define FUSECELL_HD_METHOD inline __attribute__((always_inline))
#endif
