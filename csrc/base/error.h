#pragma once
// One error type for the whole core: which argument, what was expected, what came. The bindings turn it into
// ValueError, TypeError, MemoryError or RuntimeError; nothing in the core ever aborts or prints.

#include <stdexcept>
#include <string>

namespace fusecell {

class Error : public std::runtime_error {
 public:
  enum class Kind { value, type, memory, runtime };

  Error(Kind kind, const std::string& argument, const std::string& expected, const std::string& got)
      : std::runtime_error(argument + ": expected " + expected + ", got " + got), kind_(kind) {}

  Error(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

[[noreturn]] inline void value_error(const std::string& argument, const std::string& expected, const std::string& got) {
  throw Error(Error::Kind::value, argument, expected, got);
}

[[noreturn]] inline void type_error(const std::string& argument, const std::string& expected, const std::string& got) {
  throw Error(Error::Kind::type, argument, expected, got);
}

[[noreturn]] inline void memory_error(const std::string& what) {
  throw Error(Error::Kind::memory, what, "at most 2^46 bytes", "more");
}

}  // namespace fusecell
