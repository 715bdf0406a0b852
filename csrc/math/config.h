// How the math headers compile: the function qualifier and one namespace per instruction set.
#pragma once

// A namespace per instruction set, so that no weak symbol compiled for AVX-512 is linked into the
// code that a baseline CPU runs. The build defines VAEFAST_ISA per source.
#if !defined(VAEFAST_ISA)
#if defined(__CUDACC__)
#define VAEFAST_ISA isa_cuda
#else
#define VAEFAST_ISA isa_default
#endif
#endif

// CUDA's kernels compiled as C++ run on the CPU, and their approximations are off by all that the
// GPU's may be (device.h).
#define VAEFAST_IS_isa_cuda 1
#define VAEFAST_JOINED(a, b) a##b
#define VAEFAST_IS(isa) VAEFAST_JOINED(VAEFAST_IS_, isa)
#if VAEFAST_IS(VAEFAST_ISA) && !defined(__CUDACC__)
#define VAEFAST_EMULATED 1
#else
#define VAEFAST_EMULATED 0
#endif

// Always inlined: a call left in a loop would stop its vectorisation.
#if defined(__CUDACC__)
#define VAEFAST_FN static __host__ __device__ __forceinline__
#elif defined(_MSC_VER) && !defined(__clang__)
#define VAEFAST_FN static __forceinline
#else
#define VAEFAST_FN static inline __attribute__((always_inline))
#endif

// Where a*b+c is one rounding and one instruction.
#if defined(__FMA__) || defined(__CUDA_ARCH__) || defined(__ARM_FEATURE_FMA)
#define VAEFAST_HAS_FMA 1
#else
#define VAEFAST_HAS_FMA 0
#endif

// The same for members, which static would change.
#if defined(__CUDACC__)
#define VAEFAST_MEMBER __host__ __device__ __forceinline__
#elif defined(_MSC_VER) && !defined(__clang__)
#define VAEFAST_MEMBER __forceinline
#else
#define VAEFAST_MEMBER inline __attribute__((always_inline))
#endif
