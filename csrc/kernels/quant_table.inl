// Affine weights of few bits as bfloat16, by table: a group holds only 2^bits different values, so each row and group
// makes one table of its dequantized values, and a 16-bit permutation looks 32 weights up at once. The values are
// AffineReader's: scale·q + bias in float, rounded to bfloat16.
#if defined(LOCALSFT_KERNELS_avx512bf16)

// Which order the 32 values of lookup() come in: as they lie, or such that unpacking two rows' low and high halves of
// each 128-bit lane interleaves the rows and leaves the columns in order.
enum class Order { ROW, PAIR };

// For bits <= 5 and groups of at least 32.
template <int ROWS, Order ORDER>
struct TableReader : AffineReader<ROWS> {
  // Each 16-bit lane's two bytes and shift. The bits above the value's may hold anything: the table repeats.
  __m512i bytes, shift;
  __m512 low, high;  // q of the table's entries 0-15 and 16-31: 0 1 2 ... repeated every 2^bits
  int second;        // byte offset of the upper 16 values, where 32 don't fit into 16 bytes

  TableReader(const Matrix* m) : AffineReader<ROWS>(m), second(m->bits > 4 ? 2 * m->bits : 0) {
    uint8_t lane_bytes[64];
    uint16_t lane_shift[32];
    float q[32];
    for (int lane = 0; lane < 32; ++lane) {
      // The upper half of the vector reads `second` bytes on; in PAIR order each 128-bit lane holds 4 values of either
      // half, so it can't, and 5 bits go without.
      const int value = ORDER == Order::ROW ? lane : lane / 8 * 4 + lane % 4 + (lane & 4) * 4;
      const int bit = value * m->bits - (ORDER == Order::ROW && lane >= 16 ? 8 * second : 0);
      lane_bytes[2 * lane] = uint8_t(bit / 8), lane_bytes[2 * lane + 1] = uint8_t(bit / 8 + 1);
      lane_shift[lane] = uint16_t(bit % 8);
      q[lane] = float(lane & ((1 << m->bits) - 1));
    }
    bytes = _mm512_loadu_si512(lane_bytes), shift = _mm512_loadu_si512(lane_shift);
    low = _mm512_loadu_ps(q), high = _mm512_loadu_ps(q + 16);
  }

  // Columns [k, k + 32) of row r, k a multiple of 32 in the matrix, as bfloat16.
  LOCALSFT_MEMBER __m512i lookup(int r, int64_t k) const {
    const int g = this->group(k);
    const vf scale = vset(this->scale[r][g]), bias = vset(this->bias[r][g]), entries = vfma(scale, low, bias);
    const uint8_t* p = this->at(r, k);
    __m512i bits = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)), table;
    if (ORDER == Order::ROW && second != 0) {
      bits = _mm512_mask_broadcast_i32x4(bits, 0xff00, _mm_loadu_si128((const __m128i*)(p + second)));
      table = (__m512i)_mm512_cvtne2ps_pbh(vfma(scale, high, bias), entries);
    } else {
      table = (__m512i)_mm512_cvtne2ps_pbh(entries, entries);
    }
    return _mm512_permutexvar_epi16(_mm512_srlv_epi16(_mm512_shuffle_epi8(bits, bytes), shift), table);
  }
};

#endif
