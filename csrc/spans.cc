#include "spans.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace localsft {
namespace {

constexpr size_t kMostPieces = size_t(1) << 18;
constexpr size_t kLongPiece = 64;  // bytes

bool is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool continues(char byte) { return (uint8_t(byte) & 0xC0) == 0x80; }

// Of valid UTF-8; anything else yields some number, and never reads beyond the text.
uint32_t decode(std::string_view text, size_t position) {
  const uint8_t first = uint8_t(text[position]);
  if (first < 0x80) return first;
  uint32_t code = first >= 0xF0 ? first & 0x07 : first >= 0xE0 ? first & 0x0F : first & 0x1F;
  for (size_t i = position + 1; i < text.size() && continues(text[i]); ++i)
    code = code << 6 | (uint8_t(text[i]) & 0x3F);
  return code;
}

std::vector<std::string> texts_of(const std::vector<ControlText>& controls) {
  std::vector<std::string> texts;
  for (const ControlText& control : controls) texts.push_back(control.text);
  return texts;
}

}  // namespace

bool space_at(std::string_view text, size_t position) { return is_space(decode(text, position)); }

bool space_before(std::string_view text, size_t position) {
  size_t start = position - 1;
  while (start > 0 && continues(text[start])) --start;
  return is_space(decode(text.substr(0, position), start));
}

TextFinder::TextFinder(std::vector<std::string> texts) : texts_(std::move(texts)) {
  for (size_t i = 0; i < texts_.size(); ++i)
    if (!texts_[i].empty()) starting_[uint8_t(texts_[i][0])].push_back(i);
  for (auto& places : starting_)
    std::stable_sort(places.begin(), places.end(),
                     [this](size_t a, size_t b) { return texts_[a].size() > texts_[b].size(); });
}

size_t TextFinder::find(std::string_view in, size_t from, size_t* which) const {
  for (size_t at = from; at < in.size(); ++at)
    for (size_t i : starting_[uint8_t(in[at])])
      if (in.compare(at, texts_[i].size(), texts_[i]) == 0) {
        *which = i;
        return at;
      }
  return std::string_view::npos;
}

SpanEncoder::SpanEncoder(std::vector<ControlText> controls, std::vector<std::string> fixed)
    : controls_(std::move(controls)), control_finder_(texts_of(controls_)), fixed_finder_(std::move(fixed)) {}

bool SpanEncoder::encode(std::string_view text, bool control, std::string_view guard, std::string& out) {
  if (!control) return text.empty() || run(text, guard, out);
  bool known = true;
  size_t start = 0, which = 0, at = 0;
  while ((at = control_finder_.find(text, at, &which)) != std::string_view::npos) {
    const ControlText& token = controls_[which];
    std::string_view before = at > start ? text.substr(start, at - start) : std::string_view();
    if (token.lstrip)
      while (!before.empty() && space_before(before, before.size())) {
        size_t end = before.size() - 1;
        while (end > 0 && continues(before[end])) --end;
        before = before.substr(0, end);
      }
    if (!before.empty()) known &= run(before, guard, out);
    out.append(reinterpret_cast<const char*>(&token.id), sizeof token.id);
    start = at += token.text.size();
    if (token.rstrip)
      while (start < text.size() && space_at(text, start)) {
        ++start;
        while (start < text.size() && continues(text[start])) ++start;
      }
  }
  if (start < text.size()) known &= run(text.substr(start), guard, out);
  return known;
}

bool SpanEncoder::run(std::string_view text, std::string_view guard, std::string& out) {
  if (!guard.empty() && text.find(guard) != std::string_view::npos) {
    unguarded_.clear();
    size_t start = 0;
    for (size_t at; (at = text.find(guard, start)) != std::string_view::npos; start = at + guard.size())
      unguarded_.append(text, start, at - start);
    text = unguarded_.append(text, start, std::string_view::npos);
    if (text.empty()) return true;
  }
  size_t which;
  if (fixed_finder_.find(text, 0, &which) != std::string_view::npos) return look_up(heads_, text, out);
  bool known = true, head = true;
  split_at_spaces(text, [&](std::string_view piece) {
    known &= look_up(head ? heads_ : tails_, piece, out);
    head = false;
  });
  return known;
}

bool SpanEncoder::look_up(Pieces& pieces, std::string_view piece, std::string& out) {
  const auto found = pieces.known.find(piece);
  if (found != pieces.known.end()) {
    out.append(found->second.ids);
    return true;
  }
  if (pieces.noted.emplace(piece).second) pieces.missing.emplace_back(piece);
  return false;
}

SpanEncoder::Missing SpanEncoder::take_missing() {
  heads_.noted.clear();
  tails_.noted.clear();
  return {std::exchange(heads_.missing, {}), std::exchange(tails_.missing, {})};
}

void SpanEncoder::learn(bool tail, std::string_view piece, std::string ids) {
  Entry entry{std::make_unique<char[]>(piece.size()), std::move(ids)};
  std::memcpy(entry.text.get(), piece.data(), piece.size());
  const std::string_view key(entry.text.get(), piece.size());
  (tail ? tails_ : heads_).known.emplace(key, std::move(entry));
  if (piece.size() > kLongPiece) long_.emplace_back(tail, piece);
}

void SpanEncoder::trim() {
  for (const auto& [tail, piece] : long_) (tail ? tails_ : heads_).known.erase(piece);
  long_.clear();
  if (heads_.known.size() + tails_.known.size() > kMostPieces) {
    heads_.known.clear();
    tails_.known.clear();
  }
}

}  // namespace localsft
