#include "trace/optimizers/builtin_ops.h"

#include <algorithm>
#include <iterator>

namespace optod::trace {
namespace {

struct Row {
  std::string_view op, text;
};

// Sorted by name (checked by a test).
constexpr Row kRows[] = {
    {"abs", "absolute value of x"},
    {"add", "x + y"},
    {"and_", "bitwise x & y"},
    {"call", "calls fun with the other arguments"},
    {"call_llm", "the language model's answer to the prompts"},
    {"capitalize", "x with its first letter in upper case"},
    {"ceil", "x rounded up"},
    {"chr_", "the character with code x"},
    {"clone", "a copy of x"},
    {"concat", "x followed by y"},
    {"cond", "x if condition holds, else y"},
    {"dict_pop", "x without a key"},
    {"dict_popitem", "x without its last pair"},
    {"dict_update", "x with the pairs of y"},
    {"divide", "x / y"},
    {"eq", "whether x equals y"},
    {"eval", "calls the function whose source is __code with the other arguments"},
    {"exception", "the call failed; the value is the error"},
    {"floor", "x rounded down"},
    {"floor_divide", "x // y, rounded down"},
    {"format", "template x with its fields filled in"},
    {"ge", "whether x >= y"},
    {"get", "member of x, or a default"},
    {"getitem", "element of x at index"},
    {"gt", "whether x > y"},
    {"identity", "x unchanged"},
    {"in_", "whether x is contained in y"},
    {"invert", "bitwise not of x"},
    {"is_", "whether x is y"},
    {"is_not", "whether x is not y"},
    {"items", "keys and values of x"},
    {"join", "the other arguments joined with x between them"},
    {"keys", "keys of x"},
    {"le", "whether x <= y"},
    {"len_", "length of x"},
    {"list_append", "list x with one more element"},
    {"list_clear", "an empty list"},
    {"list_extend", "list x followed by the elements of y"},
    {"list_insert", "list x with an element inserted"},
    {"list_pop", "list x without one element"},
    {"list_remove", "list x without the first element equal to y"},
    {"list_reverse", "list x in reverse order"},
    {"list_sort", "list x in order"},
    {"lower", "x in lower case"},
    {"lshift", "x << y"},
    {"lt", "whether x < y"},
    {"make_dict", "a dict of the arguments"},
    {"make_list", "a list of the arguments"},
    {"make_set", "a set of the arguments"},
    {"make_tuple", "a tuple of the arguments"},
    {"mod", "remainder of x / y"},
    {"multiply", "x * y"},
    {"ne", "whether x differs from y"},
    {"neg", "-x"},
    {"neq", "whether x differs from y"},
    {"node_divmod", "quotient and remainder of x / y"},
    {"node_getattr", "attribute attr of obj"},
    {"not_", "logical not of x"},
    {"not_in", "whether x is not contained in y"},
    {"or_", "bitwise x | y"},
    {"ord_", "the code of character x"},
    {"pop", "the element of x at index, taken out"},
    {"pos", "+x"},
    {"power", "x ** y"},
    {"replace", "x with old replaced by new"},
    {"round", "x rounded to n digits"},
    {"rshift", "x >> y"},
    {"set_add", "set x with one more element"},
    {"set_clear", "an empty set"},
    {"set_discard", "set x without y"},
    {"set_intersection_update", "elements in both x and y"},
    {"set_pop", "set x without one element"},
    {"set_remove", "set x without y"},
    {"set_symmetric_difference_update", "elements in exactly one of x and y"},
    {"set_update", "elements in x or y"},
    {"split", "x cut at each y"},
    {"strip", "x without chars at both ends"},
    {"subtract", "x - y"},
    {"swapcase", "x with upper and lower case swapped"},
    {"title", "x with each word capitalized"},
    {"to_dict", "x as a dict"},
    {"to_list", "x as a list"},
    {"to_set", "x as a set"},
    {"to_tuple", "x as a tuple"},
    {"trunc", "x without its fraction"},
    {"upper", "x in upper case"},
    {"values", "values of x"},
    {"xor", "bitwise x ^ y"},
};

}  // namespace

std::string_view BuiltinOpText(std::string_view op) {
  const auto* found = std::lower_bound(std::begin(kRows), std::end(kRows), op,
                                       [](const Row& r, std::string_view o) { return r.op < o; });
  return found != std::end(kRows) && found->op == op ? found->text : std::string_view();
}

}  // namespace optod::trace
