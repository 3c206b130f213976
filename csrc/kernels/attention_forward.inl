// Flash attention, forward (Dao et al., 2022; Milakov & Gimelshein, 2018): scores of a block of keys, then the running
// maximum m, the running sum l and the running output o of each row, rescaled when m grows.
//
// Query rows sit in the lanes, so m and l are plain vectors and no step ever reduces across lanes:
//   S[key][row] = K[key]·Q[row],   P = 2^(S - m),   O[e][row] += Σ_key V[key][e]·P[key][row].

struct ForwardState {
  int64_t panels;
  word* q;            // [panel][E/WORD][PANEL]
  float* o;           // [panel][round_up(E, TILE_ROWS)][PANEL]
  float *m, *l;       // [panel][PANEL]; m as ScoreRule's scores
  float *low, *high;  // [panel][PANEL]
  int32_t* started;   // [panel]: o holds something
  float* s;           // [key][PANEL]: scores, then in the same place the words of P, [key/WORD][PANEL]
};

// Cuts `memory` into the parts of a state; with memory = 0 only counts. Returns the bytes.
static size_t cut(char* memory, size_t& used, size_t bytes, void** part) {
  *part = memory + used;
  used += (bytes + 63) / 64 * 64;
  return used;
}
static size_t forward_state(const AttentionShape& s, const AttentionChunk* chunk, void* memory, ForwardState* state) {
  const int64_t rows = round_up(ATTENTION_ROWS, PANEL), E_rows = round_up(s.E, TILE_ROWS);
  state->panels = chunk ? (chunk->end - chunk->begin + PANEL - 1) / PANEL : 0;
  char* base = (char*)memory;
  size_t used = 0;
  cut(base, used, size_t(rows * s.E / WORD) * sizeof(word), (void**)&state->q);
  cut(base, used, size_t(rows * E_rows) * 4, (void**)&state->o);
  cut(base, used, size_t(rows) * 4, (void**)&state->m);
  cut(base, used, size_t(rows) * 4, (void**)&state->l);
  cut(base, used, size_t(rows) * 4, (void**)&state->low);
  cut(base, used, size_t(rows) * 4, (void**)&state->high);
  cut(base, used, size_t(rows / PANEL) * 4, (void**)&state->started);
  return cut(base, used, size_t(ATTENTION_KEYS * PANEL) * 4, (void**)&state->s);
}
static size_t forward_bytes(const AttentionShape& s) {
  ForwardState state;
  return forward_state(s, 0, 0, &state);
}

// A block of keys: k [key][E/WORD], v [key/WORD][round_up(E, TILE_ROWS)].
struct ForwardKeys {
  word *k, *v;
};
static size_t forward_key_parts(const AttentionShape& s, const void* packed, ForwardKeys* parts) {
  size_t used = 0;
  cut((char*)packed, used, size_t(ATTENTION_KEYS * s.E / WORD) * sizeof(word), (void**)&parts->k);
  return cut((char*)packed, used, size_t(ATTENTION_KEYS / WORD * round_up(s.E, TILE_ROWS)) * sizeof(word),
             (void**)&parts->v);
}
static size_t forward_pack_bytes(const AttentionShape& s) {
  ForwardKeys parts;
  return forward_key_parts(s, 0, &parts);
}
static void forward_pack(const AttentionShape& s, int64_t kv_head, const AttentionKeys& keys, const void* k,
                         const void* v, void* packed) {
  ForwardKeys parts;
  forward_key_parts(s, packed, &parts);
  const int64_t row_step = s.kv_heads * s.E, at = keys.begin * row_step + kv_head * s.E;
  const int64_t padded = round_up(keys.count, TILE_ROWS);
  pack_rows((const act_t*)k + at, row_step, keys.count, padded, s.E, parts.k);
  pack_pairs((const act_t*)v + at, row_step, keys.count, padded, s.E, round_up(s.E, TILE_ROWS), parts.v);
}

static void forward_begin(const AttentionShape& s, const AttentionChunk& chunk, const void* q, void* memory) {
  ForwardState state;
  forward_state(s, &chunk, memory, &state);
  pack_chunk_panels(s, chunk, (const act_t*)q, state.q);
  const int64_t rows = state.panels * PANEL;
  visible_range(s, chunk, rows, state.low, state.high);
  for (int64_t row = 0; row < rows; ++row) state.m[row] = NEVER, state.l[row] = 0;
  for (int64_t panel = 0; panel < state.panels; ++panel) state.started[panel] = 0;
}

// The products of the keys [begin, end) (multiples of TILE_ROWS) with one panel, in state.s -> their scores.
template <int NV>
static void finish_scores(const AttentionShape& s, const AttentionKeys& keys, const ForwardState& state, int64_t panel,
                          int64_t begin, int64_t end) {
  const ScoreRule rule(s);
  for (int v = 0; v < NV; ++v) {
    const int64_t lane = panel * PANEL + v * LANES;
    const vf low = vload(state.low + lane);
    const vf high = vmin(vload(state.high + lane), vset(float(keys.position + keys.count)));
    for (int64_t key = begin; key < end; ++key) {
      float* at = state.s + key * PANEL + v * LANES;
      vstore(at,
             where_visible(score(rule, vload(at)), vset(float(keys.position + key)), low, high, vset(MINUS_INFINITY)));
    }
  }
}

// Scores of the keys [begin, end) (multiples of TILE_ROWS) of one panel into state.s; raises m.
template <int NV>
static void panel_scores(const AttentionShape& s, const AttentionKeys& keys, const word* k, const ForwardState& state,
                         int64_t panel, int64_t begin, int64_t end, const KeyRange& range, vf (&m)[NV]) {
  const int64_t width = s.E / WORD;
  const word* q = state.q + panel * width * PANEL;
  for (int64_t key = begin; key < end; key += TILE_ROWS) {
    vf sums[TILE_ROWS][NV];
    for (int r = 0; r < TILE_ROWS; ++r)
      for (int v = 0; v < NV; ++v) sums[r][v] = vzero();
    tile<TILE_ROWS, NV>(k + key * width, width, 1, q, PANEL, width, sums);
    float* at = state.s + key * PANEL;
    LOCALSFT_UNROLL for (int r = 0; r < TILE_ROWS; ++r) LOCALSFT_UNROLL for (int v = 0; v < NV; ++v)
        vstore(at + r * PANEL + v * LANES, sums[r][v]);
    if (s.softcap > 0 || key < range.all_begin || key + TILE_ROWS > range.all_end) {
      finish_scores<NV>(s, keys, state, panel, key, key + TILE_ROWS);
      for (int r = 0; r < TILE_ROWS; ++r)
        for (int v = 0; v < NV; ++v) m[v] = vmax(m[v], vload(at + r * PANEL + v * LANES));
    } else {
      LOCALSFT_UNROLL for (int r = 0; r < TILE_ROWS; ++r) LOCALSFT_UNROLL for (int v = 0; v < NV; ++v) m[v] =
          vmax(m[v], sums[r][v]);
    }
  }
}

#if defined(LOCALSFT_KERNELS_avx512bf16)
// Lane i of the result pairs low[i] with high[i].
LOCALSFT_INLINE __m512i pair_lanes(vf low, vf high) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#endif

// P of WORD keys (x: their scores minus m) as the words of a right operand.
LOCALSFT_INLINE void store_pair(word* out, const vf* p) {
#if defined(LOCALSFT_KERNELS_avx512bf16)
  _mm512_storeu_si512(out, pair_lanes(p[0], p[1]));
#else
  vstore(out, p[0]);
#endif
}

template <int NV, Meeting MEETING>
LOCALSFT_INLINE void add_values(const AttentionShape& s, const word* v, const ForwardState& state, int64_t panel,
                                int64_t begin, int64_t end, const float* factor) {
  const int64_t E_rows = round_up(s.E, TILE_ROWS);
  const word* p = (const word*)state.s + begin / WORD * PANEL;
  float* o = state.o + panel * E_rows * PANEL;
  for (int64_t e = 0; e < E_rows; e += TILE_ROWS)
    add_tile<TILE_ROWS, NV, MEETING>(v + begin / WORD * E_rows + e, 1, E_rows, p, PANEL, (end - begin) / WORD, factor,
                                     o + e * PANEL, PANEL);
}

template <int NV>
static void forward_panel(const AttentionShape& s, const AttentionKeys& keys, const ForwardKeys& parts,
                          const ForwardState& state, int64_t panel) {
  const int64_t lane = panel * PANEL;
  const KeyRange range = key_range(keys, state.low + lane, state.high + lane);
  if (range.begin >= range.end) return;
  const int64_t begin = range.begin / TILE_ROWS * TILE_ROWS, end = round_up(range.end, TILE_ROWS);
  vf m[NV], l[NV], base[NV];
  for (int v = 0; v < NV; ++v) m[v] = vload(state.m + lane + v * LANES);
  panel_scores<NV>(s, keys, parts.k, state, panel, begin, end, range, m);
  const vf unit = vset(ScoreRule(s).unit);
  float factor[NV * LANES];
  for (int v = 0; v < NV; ++v) {
    const vf shrink = vexp2(vmul(unit, vsub(vload(state.m + lane + v * LANES), m[v])));
    vstore(factor + v * LANES, shrink);
    l[v] = vmul(vload(state.l + lane + v * LANES), shrink);
    vstore(state.m + lane + v * LANES, m[v]);
    base[v] = vmul(vset(-ScoreRule(s).unit), m[v]);
  }
  word* words = (word*)state.s;
  for (int64_t key = begin; key < end; key += WORD)
    for (int v = 0; v < NV; ++v) {
      vf p[WORD];
      for (int w = 0; w < WORD; ++w) {
        p[w] = vexp2(vfma(unit, vload(state.s + (key + w) * PANEL + v * LANES), base[v]));
        l[v] = vadd(l[v], p[w]);
      }
      store_pair(words + key / WORD * PANEL + v * LANES, p);
    }
  for (int v = 0; v < NV; ++v) vstore(state.l + lane + v * LANES, l[v]);
  if (state.started[panel])
    add_values<NV, SCALE_ADD>(s, parts.v, state, panel, begin, end, factor);
  else
    add_values<NV, SET>(s, parts.v, state, panel, begin, end, 0);
  state.started[panel] = 1;
}

static void forward_keys(const AttentionShape& s, const AttentionChunk& chunk, const AttentionKeys& keys,
                         const void* packed, void* memory) {
  ForwardState state;
  forward_state(s, &chunk, memory, &state);
  ForwardKeys parts;
  forward_key_parts(s, packed, &parts);
  for (int64_t panel = 0; panel < state.panels; ++panel) {
    const int64_t rows = chunk.end - chunk.begin - panel * PANEL;
    if (rows > 2 * LANES)
      forward_panel<3>(s, keys, parts, state, panel);
    else if (rows > LANES)
      forward_panel<2>(s, keys, parts, state, panel);
    else
      forward_panel<1>(s, keys, parts, state, panel);
  }
}

static void forward_end(const AttentionShape& s, const AttentionChunk& chunk, void* out, float* lse, void* memory) {
  ForwardState state;
  forward_state(s, &chunk, memory, &state);
  const int64_t n = chunk.end - chunk.begin;
  const vf to_natural = vset(ScoreRule(s).unit * LN_2);
  for (int64_t row = 0; row < n; row += LANES) {
    const vf l = vload(state.l + row);
    vstore(state.m + row, vfma(to_natural, vload(state.m + row), vlog(l)));
    vstore(state.l + row, vdiv(vset(1.0f), l));
  }
  RowWalk walk(s, chunk, chunk.begin);
  for (int64_t row = 0; row < n; ++row, walk.next()) lse[walk.at / s.E] = state.m[row];
  unpack_chunk_panels(s, chunk, state.o, round_up(s.E, TILE_ROWS), state.l, (act_t*)out);
}
