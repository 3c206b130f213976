// Flash attention, backward: the mirror of attention_forward.inl, with the probabilities recomputed from the saved lse.
//   P = 2^(S - lse),  dP[key][row] = V[key]·dO[row],  dS = P∘(dP - D),  D = rowsum(dO∘O)
//   dV[key] += Σ_row P[key][row]·dO[row],  dK[key] += Σ_row dS[key][row]·Q[row],  dQ[e][row] += Σ_key
//   K[key][e]·dS[key][row]
// dK and dQ still want the factor `scale`, which is applied once when they are stored.

struct BackwardState {
  int64_t panels, rows;         // rows = panels·PANEL
  word *q, *d_out;              // [panel][E/WORD][PANEL]
  word *q_pairs, *d_out_pairs;  // [row/WORD][width]
  float* dq;                    // [panel][round_up(E, TILE_ROWS)][PANEL]
  float *base, *d;              // [panel][PANEL]: minus lse in units of log2, and D
  float *low, *high;            // [panel][PANEL]
  int32_t* started;             // [panel]: dq holds something
  act_t *p, *ds;                // [key][rows of a chunk]: left operands of dV and dK
  word* ds_words;               // [key/WORD][PANEL]: right operand of dQ
};
enum { CHUNK_ROWS = (ATTENTION_ROWS + PANEL - 1) / PANEL * PANEL };

static size_t backward_state(const AttentionShape& s, const AttentionChunk* chunk, void* memory, BackwardState* state) {
  const int64_t rows = CHUNK_ROWS, E_rows = round_up(s.E, TILE_ROWS), width = attention_width(s.E);
  state->panels = chunk ? (chunk->end - chunk->begin + PANEL - 1) / PANEL : 0;
  state->rows = state->panels * PANEL;
  char* base = (char*)memory;
  size_t used = 0;
  cut(base, used, size_t(rows * s.E / WORD) * sizeof(word), (void**)&state->q);
  cut(base, used, size_t(rows * s.E / WORD) * sizeof(word), (void**)&state->d_out);
  cut(base, used, size_t(rows / WORD * width) * sizeof(word), (void**)&state->q_pairs);
  cut(base, used, size_t(rows / WORD * width) * sizeof(word), (void**)&state->d_out_pairs);
  cut(base, used, size_t(rows * E_rows) * 4, (void**)&state->dq);
  cut(base, used, size_t(rows) * 4, (void**)&state->base);
  cut(base, used, size_t(rows) * 4, (void**)&state->d);
  cut(base, used, size_t(rows) * 4, (void**)&state->low);
  cut(base, used, size_t(rows) * 4, (void**)&state->high);
  cut(base, used, size_t(rows / PANEL) * 4, (void**)&state->started);
  cut(base, used, size_t(ATTENTION_KEYS * rows) * sizeof(act_t), (void**)&state->p);
  cut(base, used, size_t(ATTENTION_KEYS * rows) * sizeof(act_t), (void**)&state->ds);
  return cut(base, used, size_t(ATTENTION_KEYS / WORD * PANEL) * sizeof(word), (void**)&state->ds_words);
}
static size_t backward_bytes(const AttentionShape& s) {
  BackwardState state;
  return backward_state(s, 0, 0, &state);
}

// A block of keys: k, v [key][E/WORD], k_pairs [key/WORD][round_up(E, TILE_ROWS)].
struct BackwardKeys {
  word *k, *v, *k_pairs;
};
static size_t backward_key_parts(const AttentionShape& s, const void* packed, BackwardKeys* parts) {
  size_t used = 0;
  cut((char*)packed, used, size_t(ATTENTION_KEYS * s.E / WORD) * sizeof(word), (void**)&parts->k);
  cut((char*)packed, used, size_t(ATTENTION_KEYS * s.E / WORD) * sizeof(word), (void**)&parts->v);
  return cut((char*)packed, used, size_t(ATTENTION_KEYS / WORD * round_up(s.E, TILE_ROWS)) * sizeof(word),
             (void**)&parts->k_pairs);
}
static size_t backward_pack_bytes(const AttentionShape& s) {
  BackwardKeys parts;
  return backward_key_parts(s, 0, &parts);
}
static void backward_pack(const AttentionShape& s, int64_t kv_head, const AttentionKeys& keys, const void* k,
                          const void* v, void* packed) {
  BackwardKeys parts;
  backward_key_parts(s, packed, &parts);
  const int64_t row_step = s.kv_heads * s.E, at = keys.begin * row_step + kv_head * s.E;
  const int64_t padded = round_up(keys.count, TILE_ROWS);
  pack_rows((const act_t*)k + at, row_step, keys.count, padded, s.E, parts.k);
  pack_rows((const act_t*)v + at, row_step, keys.count, padded, s.E, parts.v);
  pack_pairs((const act_t*)k + at, row_step, keys.count, padded, s.E, round_up(s.E, TILE_ROWS), parts.k_pairs);
}

static void backward_begin(const AttentionShape& s, const AttentionChunk& chunk, const void* q, const void* out,
                           const float* lse, const void* d_out, void* memory) {
  BackwardState state;
  backward_state(s, &chunk, memory, &state);
  const int64_t n = chunk.end - chunk.begin, width = attention_width(s.E);
  pack_chunk_panels(s, chunk, (const act_t*)q, state.q);
  pack_chunk_panels(s, chunk, (const act_t*)d_out, state.d_out);
  pack_chunk_pairs(s, chunk, (const act_t*)q, state.rows, width, state.q_pairs);
  pack_chunk_pairs(s, chunk, (const act_t*)d_out, state.rows, width, state.d_out_pairs);
  visible_range(s, chunk, state.rows, state.low, state.high);
  RowWalk walk(s, chunk, chunk.begin);
  for (int64_t row = 0; row < n; ++row, walk.next()) {
    const act_t *o = (const act_t*)out + walk.at, *d = (const act_t*)d_out + walk.at;
    vf sum = vzero();
    for (int64_t e = 0; e < s.E; e += LANES) {
      const int lanes = int(at_most(s.E - e, LANES));
      sum = vfma(vload_act_n(o + e, lanes), vload_act_n(d + e, lanes), sum);
    }
    state.d[row] = vsum(sum);
    state.base[row] = -LOG2_E * lse[walk.at / s.E];
  }
  for (int64_t row = n; row < state.rows; ++row) state.d[row] = 0, state.base[row] = 0;
  for (int64_t panel = 0; panel < state.panels; ++panel) state.started[panel] = 0;
}

// One row of P or dS, as values along the query rows.
template <int NV>
LOCALSFT_INLINE void store_row(act_t* out, const vf* x) {
#if defined(LOCALSFT_KERNELS_avx512bf16)
  if (NV >= 2) _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
  if (NV != 2) vstore_act(out + (NV - 1) * LANES, x[NV - 1]);
#else
  LOCALSFT_UNROLL for (int v = 0; v < NV; ++v) vstore_act(out + v * LANES, x[v]);
#endif
}

template <int NV>
struct PairTile {
  vf p[PAIR_ROWS][NV], ds[PAIR_ROWS][NV];  // first K·Q and V·dO, then P and dS
};

// P and dS of a tile of keys into the three places where tiles read them.
template <int NV>
LOCALSFT_INLINE void store_gradients(const BackwardState& state, int64_t panel, int64_t key, const PairTile<NV>& tile) {
  LOCALSFT_UNROLL for (int r = 0; r < PAIR_ROWS; ++r) {
    store_row<NV>(state.p + (key + r) * CHUNK_ROWS + panel * PANEL, tile.p[r]);
    store_row<NV>(state.ds + (key + r) * CHUNK_ROWS + panel * PANEL, tile.ds[r]);
  }
  LOCALSFT_UNROLL for (int r = 0; r < PAIR_ROWS; r += WORD) LOCALSFT_UNROLL for (int v = 0; v < NV; ++v) {
    vf pair[WORD];
    LOCALSFT_UNROLL for (int w = 0; w < WORD; ++w) pair[w] = tile.ds[r + w][v];
    store_pair(state.ds_words + (key + r) / WORD * PANEL + v * LANES, pair);
  }
}

// With a soft cap, or where some row does not see some key.
template <int NV>
static void finish_gradients(const AttentionShape& s, const AttentionKeys& keys, const BackwardState& state,
                             int64_t panel, int64_t key, PairTile<NV>& tile) {
  const ScoreRule rule(s);
  const vf last = vset(float(keys.position + keys.count));
  for (int v = 0; v < NV; ++v) {
    const int64_t lane = panel * PANEL + v * LANES;
    const vf low = vload(state.low + lane), high = vmin(vload(state.high + lane), last);
    for (int r = 0; r < PAIR_ROWS; ++r) {
      const vf x = score(rule, tile.p[r][v]);
      const vf p = vexp2(vfma(vset(rule.unit), x, vload(state.base + lane)));
      tile.p[r][v] = where_visible(p, vset(float(keys.position + key + r)), low, high, vzero());
      tile.ds[r][v] = vmul(tile.p[r][v], vsub(tile.ds[r][v], vload(state.d + lane)));
      if (rule.capped) tile.ds[r][v] = vmul(tile.ds[r][v], score_slope(x));
    }
  }
  store_gradients<NV>(state, panel, key, tile);
}

// P and dS of one panel for the keys [begin, end) (multiples of PAIR_ROWS).
template <int NV>
static void panel_gradients(const AttentionShape& s, const AttentionKeys& keys, const BackwardKeys& parts,
                            const BackwardState& state, int64_t panel, int64_t begin, int64_t end,
                            const KeyRange& range) {
  const int64_t width = s.E / WORD;
  const vf unit = vset(ScoreRule(s).unit);
  const word *q = state.q + panel * width * PANEL, *d_out = state.d_out + panel * width * PANEL;
  for (int64_t key = begin; key < end; key += PAIR_ROWS) {
    PairTile<NV> sums;
    for (int r = 0; r < PAIR_ROWS; ++r)
      for (int v = 0; v < NV; ++v) sums.p[r][v] = sums.ds[r][v] = vzero();
    tile_pair<PAIR_ROWS, NV>(parts.k + key * width, q, parts.v + key * width, d_out, width, PANEL, width, sums.p,
                             sums.ds);
    if (s.softcap > 0 || key < range.all_begin || key + PAIR_ROWS > range.all_end) {
      PairTile<NV> kept;  // a copy in memory: `sums` itself stays in registers
      LOCALSFT_UNROLL for (int r = 0; r < PAIR_ROWS; ++r) LOCALSFT_UNROLL for (int v = 0; v < NV; ++v)
          kept.p[r][v] = sums.p[r][v],
          kept.ds[r][v] = sums.ds[r][v];
      finish_gradients<NV>(s, keys, state, panel, key, kept);
      continue;
    }
    LOCALSFT_UNROLL for (int v = 0; v < NV; ++v) {
      const int64_t lane = panel * PANEL + v * LANES;
      const vf base = vload(state.base + lane), d = vload(state.d + lane);
      LOCALSFT_UNROLL for (int r = 0; r < PAIR_ROWS; ++r) {
        sums.p[r][v] = vexp2(vfma(unit, sums.p[r][v], base));
        sums.ds[r][v] = vmul(sums.p[r][v], vsub(sums.ds[r][v], d));
      }
    }
    store_gradients<NV>(state, panel, key, sums);
  }
}

template <int NV, Meeting MEETING>
LOCALSFT_INLINE void add_query_gradients(const AttentionShape& s, const word* k_pairs, const BackwardState& state,
                                         int64_t panel, int64_t begin, int64_t end) {
  const int64_t E_rows = round_up(s.E, TILE_ROWS);
  float* dq = state.dq + panel * E_rows * PANEL;
  for (int64_t e = 0; e < E_rows; e += TILE_ROWS)
    add_tile<TILE_ROWS, NV, MEETING>(k_pairs + begin / WORD * E_rows + e, 1, E_rows,
                                     state.ds_words + begin / WORD * PANEL, PANEL, (end - begin) / WORD, 0,
                                     dq + e * PANEL, PANEL);
}

template <int NV>
static void backward_panel(const AttentionShape& s, const AttentionKeys& keys, const BackwardKeys& parts,
                           const BackwardState& state, int64_t panel, int64_t begin, int64_t end,
                           const KeyRange& range) {
  panel_gradients<NV>(s, keys, parts, state, panel, begin, end, range);
  if (state.started[panel])
    add_query_gradients<NV, ADD>(s, parts.k_pairs, state, panel, begin, end);
  else
    add_query_gradients<NV, SET>(s, parts.k_pairs, state, panel, begin, end);
  state.started[panel] = 1;
}

// sums[SUM_ROWS keys][width] += Σ over `words` words of query rows: left [key][CHUNK_ROWS] · right [word][width].
LOCALSFT_INLINE void add_key_sums(const act_t* left, const word* right, int64_t words, int64_t width, float* sums) {
  enum { LEFT_STEP = CHUNK_ROWS / WORD };
  const word* a = (const word*)left;
  int64_t e = 0;
  // Of four vectors by threes one would be left, alone with too few chains of additions: two and two.
  const auto by_twos = [&] { return SUM_VECTORS == 3 && width - e == 4 * LANES; };
  for (; e + SUM_VECTORS * LANES <= width && !by_twos(); e += SUM_VECTORS * LANES)
    add_tile<SUM_ROWS, SUM_VECTORS, ADD>(a, LEFT_STEP, 1, right + e, width, words, 0, sums + e, width);
  for (; e + 2 * LANES <= width; e += 2 * LANES)
    add_tile<SUM_ROWS, 2, ADD>(a, LEFT_STEP, 1, right + e, width, words, 0, sums + e, width);
  for (; e < width; e += LANES)
    add_tile<SUM_ROWS, 1, ADD>(a, LEFT_STEP, 1, right + e, width, words, 0, sums + e, width);
}

static void backward_keys(const AttentionShape& s, const AttentionChunk& chunk, const AttentionKeys& keys,
                          const void* packed, float* dk, float* dv, void* memory) {
  BackwardState state;
  backward_state(s, &chunk, memory, &state);
  BackwardKeys parts;
  backward_key_parts(s, packed, &parts);
  const int64_t width = attention_width(s.E);

  int64_t seen_begin[CHUNK_ROWS / PANEL], seen_end[CHUNK_ROWS / PANEL];  // keys of each panel whose P and dS exist
  for (int64_t panel = 0; panel < state.panels; ++panel) {
    const KeyRange range = key_range(keys, state.low + panel * PANEL, state.high + panel * PANEL);
    seen_begin[panel] = range.begin / SUM_ROWS * SUM_ROWS;
    seen_end[panel] = range.begin < range.end ? round_up(range.end, SUM_ROWS) : seen_begin[panel];
    const int64_t rows = chunk.end - chunk.begin - panel * PANEL;
    if (seen_begin[panel] == seen_end[panel]) continue;
    if (rows > 2 * LANES)
      backward_panel<3>(s, keys, parts, state, panel, seen_begin[panel], seen_end[panel], range);
    else if (rows > LANES)
      backward_panel<2>(s, keys, parts, state, panel, seen_begin[panel], seen_end[panel], range);
    else
      backward_panel<1>(s, keys, parts, state, panel, seen_begin[panel], seen_end[panel], range);
  }

  // Rows rise in position, so the panels that see a tile of keys are neighbours.
  const int64_t row_end = round_up(chunk.end - chunk.begin, LANES);
  for (int64_t key = 0; key < keys.count; key += SUM_ROWS) {
    int64_t first = 0, end = state.panels;
    while (first < end && !(seen_begin[first] <= key && key < seen_end[first])) ++first;
    while (first < end && !(seen_begin[end - 1] <= key && key < seen_end[end - 1])) --end;
    if (first == end) continue;
    const int64_t row = first * PANEL, words = (at_most(end * PANEL, row_end) - row) / WORD;
    add_key_sums(state.p + key * CHUNK_ROWS + row, state.d_out_pairs + row / WORD * width, words, width,
                 dv + key * width);
    add_key_sums(state.ds + key * CHUNK_ROWS + row, state.q_pairs + row / WORD * width, words, width, dk + key * width);
  }
}

static void backward_end(const AttentionShape& s, const AttentionChunk& chunk, void* dq, void* memory) {
  BackwardState state;
  backward_state(s, &chunk, memory, &state);
  for (int64_t row = 0; row < chunk.end - chunk.begin; ++row) state.d[row] = s.scale;
  unpack_chunk_panels(s, chunk, state.dq, round_up(s.E, TILE_ROWS), state.d, (act_t*)dq);
}

static void backward_store(const AttentionShape& s, int64_t kv_head, const AttentionKeys& keys, const float* dk_sum,
                           const float* dv_sum, void* dk, void* dv) {
  const int64_t width = attention_width(s.E);
  const vf scale = vset(s.scale);
  for (int64_t key = 0; key < keys.count; ++key) {
    const int64_t at = ((keys.begin + key) * s.kv_heads + kv_head) * s.E;
    for (int64_t e = 0; e < s.E; e += LANES) {
      const int lanes = int(at_most(s.E - e, LANES));
      vstore_act_n((act_t*)dk + at + e, vmul(scale, vload(dk_sum + key * width + e)), lanes);
      vstore_act_n((act_t*)dv + at + e, vload(dv_sum + key * width + e), lanes);
    }
  }
}
