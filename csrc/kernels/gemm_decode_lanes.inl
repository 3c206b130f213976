// Decoding with 4 and 8 bit weights where the ISA has a faster product than float's: the integers are multiplied as
// they are, a row of the weight in each lane. How, the ISA's own file says.

#if defined(LOCALSFT_KERNELS_avx512bf16) || defined(LOCALSFT_KERNELS_avx2)
#define LOCALSFT_DECODE_LANES 1

#if defined(LOCALSFT_KERNELS_avx512bf16)
enum { WORDS = 16, LANE_GROUP = 128 };  // 32 bits each, of a row in a block; columns of a group, at most
#else
enum { WORDS = 8, LANE_GROUP = 32 };
#endif

template <int N>
struct Count {
  enum { value = N };
};

// Columns that share a scale within a block, as many as are added before they are multiplied by it.
template <int BITS>
static int group_in_block(const Matrix* w) {
  const int group = 1 << w->group_log2, block = WORDS * 32 / BITS < LANE_GROUP ? WORDS * 32 / BITS : int(LANE_GROUP);
  return group < block ? group : block;
}

// A tile asks for the next one's data as it goes; the first one's and all scales are asked for with these.
LOCALSFT_INLINE void prefetch_data(const Matrix* w, int64_t row, int64_t rows) {
  const int64_t bytes = w->columns * w->bits / 8;
  prefetch((const uint8_t*)w->data + row * bytes, rows * bytes);
}
LOCALSFT_INLINE void prefetch_scales(const Matrix* w, int64_t row, int64_t rows) {
  const int64_t bytes = (w->columns >> w->group_log2) * (w->scale_kind == Kind::F32 ? 4 : 2);
  prefetch((const uint8_t*)w->scales + row * bytes, rows * bytes);
  prefetch((const uint8_t*)w->biases + row * bytes, rows * bytes);
}

#if defined(LOCALSFT_KERNELS_avx512bf16)
#include "kernels/gemm_decode_bf16.inl"
#else
// clang-format off: the second needs the first
#include "kernels/gemm_decode_digits_pack.inl"
#include "kernels/gemm_decode_digits.inl"
// clang-format on
#endif

#endif
