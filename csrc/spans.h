// Rendered texts to token ids, for vocabularies whose words never run over a space: cut at control tokens and at single
// spaces; the ids of each distinct piece are learned once and looked up from then on.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace localsft {

// Finds any of some texts: leftmost, then longest.
class TextFinder {
 public:
  explicit TextFinder(std::vector<std::string> texts);
  // Where one of the texts stands at or after `from`, and which; npos if none does.
  size_t find(std::string_view in, size_t from, size_t* which) const;
  const std::string& operator[](size_t which) const { return texts_[which]; }

 private:
  std::vector<std::string> texts_;
  std::array<std::vector<size_t>, 256> starting_;  // by first byte: places in texts_, longest first
};

// `text` (UTF-8) cut at each single space that has neither a space nor other whitespace (as Python's str.isspace)
// beside it; the spaces are left out. Calls piece(view) for each, at least once.
template <typename F>
void split_at_spaces(std::string_view text, F piece);

struct ControlText {
  std::string text;
  int32_t id;
  bool lstrip, rstrip;  // it swallows the whitespace before, after it
};

class SpanEncoder {
 public:
  // `fixed`: texts that are tokens wherever they stand; a run with one of them is looked up whole.
  SpanEncoder(std::vector<ControlText> controls, std::vector<std::string> fixed);

  // Appends the ids of `text` to `out`, as the bytes of int32 in the machine's order. With `control` the texts of
  // control tokens become their ids; then `guard` (may be empty) is taken out of the runs between them. False if a
  // piece is not known: it is noted, and `out` is not to be used.
  bool encode(std::string_view text, bool control, std::string_view guard, std::string& out);

  // The pieces that were not known, each once; those with a space before them are tails, given without it.
  struct Missing {
    std::vector<std::string> heads, tails;
  };
  Missing take_missing();
  void learn(bool tail, std::string_view piece, std::string ids);
  // Forgets long pieces, which hardly come again, and all where there are too many.
  void trim();

 private:
  struct Entry {
    std::unique_ptr<char[]> text;
    std::string ids;
  };
  struct Pieces {
    std::unordered_map<std::string_view, Entry> known;  // the key is Entry::text
    std::unordered_set<std::string> noted;
    std::vector<std::string> missing;
  };

  bool run(std::string_view text, std::string_view guard, std::string& out);
  bool look_up(Pieces& pieces, std::string_view piece, std::string& out);

  std::vector<ControlText> controls_;
  TextFinder control_finder_, fixed_finder_;
  Pieces heads_, tails_;
  std::vector<std::pair<bool, std::string>> long_;  // learned pieces that trim() forgets
  std::string unguarded_;
};

// ---- split_at_spaces ----

// Whether the character that starts, or ends, at a byte is whitespace.
bool space_at(std::string_view text, size_t position);
bool space_before(std::string_view text, size_t position);

template <typename F>
void split_at_spaces(std::string_view text, F piece) {
  size_t start = 0;
  for (size_t at = text.find(' '); at != std::string_view::npos; at = text.find(' ', at + 1)) {
    if (at == 0 || at + 1 == text.size() || space_before(text, at) || space_at(text, at + 1)) continue;
    piece(text.substr(start, at - start));
    start = at + 1;
  }
  piece(text.substr(start));
}

}  // namespace localsft
