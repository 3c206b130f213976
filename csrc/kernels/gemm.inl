// The matrix kernels of this ISA; see gemm_table.h.

// clang-format off: each of these needs the ones before it
#include "kernels/gemm_units.inl"
#include "kernels/quant.inl"
#include "kernels/quant_table.inl"
#include "kernels/gemm_pack.inl"
#include "kernels/gemm_tile.inl"
#include "kernels/gemm_peak.inl"
#include "kernels/gemm_decode.inl"
#include "kernels/gemm_outer.inl"
#include "kernels/head.inl"
// clang-format on

static const GemmTable gemm_table = {
    STEP,  GEMM_ROWS, GEMM_VECTORS * LANES, CACHED,      CHUNK,  BLOCK_ROWS, LEAST_PANELS, pack_across, pack_along,
    tiles, peak,      decode_bytes,         decode_pack, decode, expand,     read_row,     head_tile,   outer,
};
