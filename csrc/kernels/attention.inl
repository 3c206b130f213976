// Attention kernels; see attention_table.h.

#include "kernels/attention_tile.inl"
#include "kernels/attention_transpose.inl"
// tile first: the others are written in its words
#include "kernels/attention_pack.inl"
#include "kernels/attention_softmax.inl"
// then the pair that mirrors each other, and decoding
#include "kernels/attention_forward.inl"
// forward first: the backward shares its state layout
#include "kernels/attention_backward.inl"
#include "kernels/attention_decode.inl"

static const AttentionTable attention_table = {
    forward_bytes, backward_bytes, forward_pack_bytes, backward_pack_bytes, forward_pack, backward_pack,  forward_begin,
    forward_keys,  forward_end,    backward_begin,     backward_keys,       backward_end, backward_store, decode,
};
