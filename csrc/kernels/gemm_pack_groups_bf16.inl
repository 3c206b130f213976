// Units of 32 columns of a row as bfloat16 (see gemm_pack_groups.inl).

template <int BITS>
struct GroupUnits;

// 4 bits: a register holds the group's 16 values twice, and a 16-bit permutation looks them up.
template <>
struct GroupUnits<4> {
  struct Values {
    __m512i table;
    Values() {}
    LOCALSFT_MEMBER Values(float scale, float bias) {
      const __m512 q = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const vf all = vfma(vset(scale), q, vset(bias));
      table = (__m512i)_mm512_cvtne2ps_pbh(all, all);
    }
  };
  // The byte and the shift that bring each column's bits to the low end of its 16-bit lane (what lies above them is not
  // looked at): with the columns in order, or such that the low and high halves of two rows' 128-bit lanes,
  // interleaved, are.
  struct Lanes {
    __m512i bytes, shift;
    explicit Lanes(bool halves) {
      uint8_t lane_bytes[64];
      uint16_t lane_shift[32];
      for (int lane = 0; lane < 32; ++lane) {
        const int column = halves ? lane / 8 * 4 + lane % 4 + (lane & 4) * 4 : lane;
        lane_bytes[2 * lane] = lane_bytes[2 * lane + 1] = uint8_t(column / 2);
        lane_shift[lane] = uint16_t(column % 2 * 4);
      }
      bytes = _mm512_loadu_si512(lane_bytes), shift = _mm512_loadu_si512(lane_shift);
    }
    LOCALSFT_MEMBER __m512i lookup(const Values& values, const uint8_t* p) const {
      const __m512i bits = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
      return _mm512_permutexvar_epi16(_mm512_srlv_epi16(_mm512_shuffle_epi8(bits, bytes), shift), values.table);
    }
  };
  const Lanes in_order{false}, in_halves{true};
  LOCALSFT_MEMBER vu across(const Values& values, const uint8_t* p, int) const { return in_order.lookup(values, p); }
  LOCALSFT_MEMBER void along(const Values values[2], const uint8_t* const p[2], vu units[2]) const {
    const __m512i even = in_halves.lookup(values[0], p[0]), odd = in_halves.lookup(values[1], p[1]);
    units[0] = _mm512_unpacklo_epi16(even, odd), units[1] = _mm512_unpackhi_epi16(even, odd);
  }
};

template <>
struct GroupUnits<8> {
  struct Values {
    vf scale, bias;
    Values() {}
    LOCALSFT_MEMBER Values(float s, float b) : scale(vset(s)), bias(vset(b)) {}
    LOCALSFT_MEMBER vf at(const uint8_t* p) const {
      return vfma(scale, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))), bias);
    }
  };
  LOCALSFT_MEMBER vu across(const Values& values, const uint8_t* p, int) const {
    return uneighbours(values.at(p), values.at(p + LANES));
  }
  LOCALSFT_MEMBER void along(const Values values[2], const uint8_t* const p[2], vu units[2]) const {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) units[v] = uinterleave(values[0].at(p[0] + v * LANES), values[1].at(p[1] + v * LANES));
  }
};
