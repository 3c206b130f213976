// A weight's panels packed once, for products of so few rows that packing them anew each time would take a good part of
// the time.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace localsft {

// Units of a weight's panels, in both orientations.
int64_t panel_units(const Context& ctx, const Matrix& m);

// Packs all panels of m to `units`, panel_units() of them. They serve the kernels of this context's ISA alone.
kernels::KeptPanels keep_panels(Context& ctx, const Matrix& m, uint32_t* units);

// Some neighbouring panels: each (steps, panel) units, `next` units apart.
struct Panels {
  const uint32_t* units;  // null: none
  int64_t next;
};

// The kept panels from row (or column) `first` on, a multiple of the panel, and from a step of the reduction on; none
// where they are not kept, or for other kernels than these.
Panels kept_across(const Context& ctx, const Matrix& m, int64_t first, int64_t step);
Panels kept_along(const Context& ctx, const Matrix& m, int64_t first, int64_t step);

}  // namespace localsft
