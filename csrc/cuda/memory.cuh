// Between memory and registers, V consecutive elements at a time: 16 bytes in one instruction
// wherever a row's start allows it, element by element elsewhere.
//
// What is read stays in its storage type until `decode`, so that the loads of several operands are
// all under way before the first is waited for.
#pragma once

#include "core/args.h"
#include "cpu/convert.h"
#include "cuda/emulated.h"

namespace vaefast {
namespace VAEFAST_ISA {

// What a kernel knows beforehand of an operand's storage type: nothing, that it is one of the two
// 16-bit types, or that it is float32. The numbers are the bytes of an element.
constexpr int kAny = 0, kHalf = 2, kFloat = 4;

VAEFAST_FN float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
#else
  return from_f16(h);
#endif
}

// Two floats as two 16-bit ones in a word.
VAEFAST_FN uint32_t two_halves(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_f16(low) | static_cast<uint32_t>(to_f16(high)) << 16;
#endif
}

VAEFAST_FN uint32_t two_bfloats(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16;
#endif
}

// kBytes from an address that is a multiple of kBytes, or of 16. In assembly, as the compiler loses
// track of which pointers are global behind the selects of `enter`.
template <int kBytes>
VAEFAST_FN void load_words(const void* from, uint32_t* words) {
#if defined(__CUDA_ARCH__)
  const size_t at = __cvta_generic_to_global(from);
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 4; i += 4)
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                   : "l"(at + 4 * i));
  } else if constexpr (kBytes == 8) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(at));
  } else {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(at));
  }
#else
  memcpy(words, from, kBytes);
#endif
}

// A block's shared memory beside what its kernel declares, and 16 bytes of it.
VAEFAST_FN char* shared_bytes() {
#if defined(__CUDA_ARCH__)
  extern __shared__ __align__(16) char vaefast_dynamic_shared[];
  return vaefast_dynamic_shared;
#elif defined(__CUDACC__)
  return nullptr;
#else
  return static_cast<char*>(emulated::dynamic_shared());
#endif
}

VAEFAST_FN void load_shared(const char* from, uint32_t* words) {
#if defined(__CUDACC__)
  const uint4 four = *reinterpret_cast<const uint4*>(from);
  words[0] = four.x;
  words[1] = four.y;
  words[2] = four.z;
  words[3] = four.w;
#else
  memcpy(words, from, 16);
#endif
}

template <int kBytes>
VAEFAST_FN void store_words(void* to, const uint32_t* words) {
#if defined(__CUDA_ARCH__)
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i)
      static_cast<uint4*>(to)[i] =
          make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
  } else if constexpr (kBytes == 8) {
    *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    *static_cast<uint32_t*>(to) = words[0];
  }
#else
  memcpy(to, words, kBytes);
#endif
}

template <class T>
VAEFAST_FN T load_one(DType dtype, const void* from) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<T>(*static_cast<const double*>(from));
    case DType::kF32:
      return static_cast<T>(*static_cast<const float*>(from));
    case DType::kBF16:
      return static_cast<T>(from_bf16(*static_cast<const uint16_t*>(from)));
    case DType::kF16:
      return static_cast<T>(half_to_float(*static_cast<const uint16_t*>(from)));
    case DType::kI32:
      return static_cast<T>(*static_cast<const int32_t*>(from));
    case DType::kI64:
      return static_cast<T>(*static_cast<const int64_t*>(from));
    default:
      return static_cast<T>(*static_cast<const uint8_t*>(from));
  }
}

template <class T>
VAEFAST_FN void store_one(DType dtype, void* to, T value) {
  switch (dtype) {
    case DType::kF64:
      *static_cast<double*>(to) = static_cast<double>(value);
      return;
    case DType::kBF16:
      *static_cast<uint16_t*>(to) = static_cast<uint16_t>(two_bfloats(float(value), 0.0f));
      return;
    case DType::kF16:
      *static_cast<uint16_t*>(to) = static_cast<uint16_t>(two_halves(float(value), 0.0f));
      return;
    default:
      *static_cast<float*>(to) = static_cast<float>(value);
      return;
  }
}

// V elements of one operand in registers, as they are stored.
template <class T, int V>
struct Raw {
  uint32_t words[V * sizeof(T) / 4];
};

VAEFAST_FN void put_bits(uint32_t* words, int j, float x) { words[j] = to_bits(x); }
VAEFAST_FN void put_bits(uint32_t* words, int j, double x) {
  const uint64_t bits = to_bits(x);
  words[2 * j] = static_cast<uint32_t>(bits);
  words[2 * j + 1] = static_cast<uint32_t>(bits >> 32);
}
VAEFAST_FN void get_bits(const uint32_t* words, int j, float& x) { x = as_float(words[j]); }
VAEFAST_FN void get_bits(const uint32_t* words, int j, double& x) {
  x = as_double(words[2 * j] | static_cast<uint64_t>(words[2 * j + 1]) << 32);
}

template <DType kType, class T, int V>
VAEFAST_FN void decode_as(const uint32_t* words, T* out) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if constexpr (kType == DType::kF64) {
      double x;
      get_bits(words, j, x);
      out[j] = static_cast<T>(x);
    } else if constexpr (kType == DType::kF32) {
      out[j] = static_cast<T>(as_float(words[j]));
    } else if constexpr (kType == DType::kBF16) {
      const uint32_t word = words[j / 2];
      out[j] = static_cast<T>(as_float(j % 2 ? word & 0xffff0000u : word << 16));
    } else if constexpr (kType == DType::kF16) {
      out[j] = static_cast<T>(half_to_float(static_cast<uint16_t>(words[j / 2] >> 16 * (j % 2))));
    } else if constexpr (kType == DType::kI32) {
      out[j] = static_cast<T>(static_cast<int32_t>(words[j]));
    } else if constexpr (kType == DType::kI64) {
      const uint64_t x = words[2 * j] | static_cast<uint64_t>(words[2 * j + 1]) << 32;
      out[j] = static_cast<T>(static_cast<int64_t>(x));
    } else {
      out[j] = static_cast<T>((words[j / 4] >> 8 * (j % 4)) & 0xffu);
    }
  }
}

// An operand of a kernel. wide: every row's start allows vector loads. sample_step: what lies
// between the rows of one sample of z and the next, for an operand that has them.
struct Source {
  View view;
  int64_t sample_step = 0;
  bool wide = false;

  VAEFAST_MEMBER explicit operator bool() const { return view.data != nullptr; }
  VAEFAST_MEMBER bool repeats() const { return view.col_stride == 0; }
};

VAEFAST_FN int64_t quotient(int64_t a, int64_t b) {
  // A 64-bit division is a hundred instructions.
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

VAEFAST_FN int64_t remainder(int64_t a, int64_t b) { return a < b ? a : a - quotient(a, b) * b; }

// Where a stretch of a row of an operand begins, at column `col`. kStored: as for `fetch`; with it
// the rows are those of the grid, one after the other.
template <int kStored>
VAEFAST_FN const char* enter(const Source& source, int64_t row, int64_t col, int64_t sample = 0) {
  const View& v = source.view;
  if constexpr (kStored == kAny) {
    if (!source) return nullptr;
    if (v.div != 1) row = quotient(row, v.div);
    row = remainder(row, v.mod);
  }
  const int64_t first = row * v.row_stride + sample * source.sample_step + col * v.col_stride;
  return static_cast<const char*>(v.data) + first * size_of(v.dtype);
}

// Elements [first, n) of kSize bytes, packed as a vector load would; zeros around them.
template <int kSize, int V>
VAEFAST_FN void load_each(const char* at, int n, uint32_t* words, int first = 0) {
#pragma unroll
  for (int i = 0; i < V * kSize / 4; ++i) words[i] = 0;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j < first || j >= n) continue;
    if constexpr (kSize == 8) {
      put_bits(words, j, *reinterpret_cast<const double*>(at + 8 * j));
    } else if constexpr (kSize == 4) {
      words[j] = *reinterpret_cast<const uint32_t*>(at + 4 * j);
    } else if constexpr (kSize == 2) {
      words[j / 2] |= uint32_t{*reinterpret_cast<const uint16_t*>(at + 2 * j)} << 16 * (j % 2);
    } else {
      words[j / 4] |= uint32_t{*reinterpret_cast<const uint8_t*>(at + j)} << 8 * (j % 4);
    }
  }
}

template <int kSize, int V>
VAEFAST_FN void load_packed(const char* at, bool whole, int n, uint32_t* words) {
  if (whole) return load_words<kSize * V>(at, words);
  load_each<kSize, V>(at, n, words);
}

// A storage type of those that kStored leaves.
template <int kStored>
VAEFAST_FN DType stored_type(DType dtype) {
  if (kStored == kFloat) return DType::kF32;
  if (kStored == kHalf) return dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
  return dtype;
}

// Reads columns [col, col + n) of the stretch, n <= V, of an operand that is `wide` and stored as
// kStored, or of any. An operand that is known not to repeat one value spares the question.
template <int kStored, bool kRepeats, class T, int V>
VAEFAST_FN void fetch(const Source& source, const char* row, int col, int n, Raw<T, V>& raw) {
  if (kRepeats && (!source || source.repeats())) {
    // Of any type: only operands of a value per element must be stored as kStored says.
    put_bits(raw.words, 0, source ? load_one<T>(source.view.dtype, row) : T(0));
    return;
  }
  const int64_t size = kStored == kAny ? size_of(source.view.dtype) : kStored;
  const char* at = row + col * size;
  const bool whole = (kStored != kAny || source.wide) && n == V;
  if (size == 1) return load_packed<1, V>(at, whole, n, raw.words);
  if (size == 2) return load_packed<2, V>(at, whole, n, raw.words);
  if (size == 4) return load_packed<4, V>(at, whole, n, raw.words);
  if constexpr (sizeof(T) == 8) {
    load_packed<8, V>(at, whole, n, raw.words);
  } else {
    // No room for what it is stored as.
#pragma unroll
    for (int j = 0; j < V; ++j)
      put_bits(raw.words, j, j < n ? load_one<T>(source.view.dtype, at + 8 * j) : T(0));
  }
}

// In the compute type; 0 past the columns that were read, and for an absent operand.
template <int kStored, bool kRepeats, class T, int V>
VAEFAST_FN void decode(const Source& source, const Raw<T, V>& raw, T* out) {
  if (kRepeats && (!source || source.repeats())) {
#pragma unroll
    for (int j = 0; j < V; ++j) get_bits(raw.words, 0, out[j]);
    return;
  }
  const DType dtype = source.view.dtype;
  if (kStored == kFloat) return decode_as<DType::kF32, T, V>(raw.words, out);
  if (kStored == kHalf && dtype == DType::kBF16)
    return decode_as<DType::kBF16, T, V>(raw.words, out);
  if (kStored == kHalf) return decode_as<DType::kF16, T, V>(raw.words, out);
  switch (dtype) {
    case DType::kBF16:
      return decode_as<DType::kBF16, T, V>(raw.words, out);
    case DType::kF16:
      return decode_as<DType::kF16, T, V>(raw.words, out);
    case DType::kU8:
    case DType::kBool:
      return decode_as<DType::kU8, T, V>(raw.words, out);
    case DType::kI32:
      return decode_as<DType::kI32, T, V>(raw.words, out);
    case DType::kI64:
      return decode_as<sizeof(T) == 8 ? DType::kI64 : DType::kF32, T, V>(raw.words, out);
    case DType::kF64:
      return decode_as<sizeof(T) == 8 ? DType::kF64 : DType::kF32, T, V>(raw.words, out);
    default:
      return decode_as<DType::kF32, T, V>(raw.words, out);
  }
}

// Element i of a vector in registers, and x in its place where `where`: selects, as an index known
// at run time would take local memory.
template <int V, class T>
VAEFAST_FN T pick(const T* values, int i) {
  T found = values[0];
#pragma unroll
  for (int j = 1; j < V; ++j) found = i == j ? values[j] : found;
  return found;
}

template <int V, class T>
VAEFAST_FN void place(T* values, int i, bool where, T x) {
#pragma unroll
  for (int j = 0; j < V; ++j) values[j] = where && i == j ? x : values[j];
}

// A dense [rows, cols] result of a kernel.
struct Target {
  Output output;
  bool wide = false;

  VAEFAST_MEMBER explicit operator bool() const { return output.data != nullptr; }
};

// Writes elements [index, index + n), n <= V.
template <int kStored, class T, int V>
VAEFAST_FN void put(const Target& target, int64_t index, int n, const T* values) {
  const DType dtype = stored_type<kStored>(target.output.dtype);
  const int64_t size = kStored == kAny ? size_of(dtype) : kStored;
  char* at = static_cast<char*>(target.output.data) + index * size;
  if (!((kStored != kAny || target.wide) && n == V)) {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < n) store_one(dtype, at + j * size, values[j]);
    return;
  }
  uint32_t words[2 * V];
  if (size == 8) {
#pragma unroll
    for (int j = 0; j < V; ++j) put_bits(words, j, static_cast<double>(values[j]));
    store_words<8 * V>(at, words);
  } else if (size == 4) {
#pragma unroll
    for (int j = 0; j < V; ++j) put_bits(words, j, static_cast<float>(values[j]));
    store_words<4 * V>(at, words);
  } else {
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      const float low = static_cast<float>(values[j]), high = static_cast<float>(values[j + 1]);
      words[j / 2] = dtype == DType::kBF16 ? two_bfloats(low, high) : two_halves(low, high);
    }
    store_words<2 * V>(at, words);
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
