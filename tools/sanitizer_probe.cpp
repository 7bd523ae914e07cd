// Errors that a sanitizer must see. tools/sanitize.sh calls them first: a run that finds nothing wrong with the core
// counts only if the same set-up finds these.
#include <climits>
#include <thread>
#include <vector>

extern "C" int address(int index) {
  std::vector<int> four(4);
  const int* volatile first = four.data();
  return first[index];  // called with 4
}

extern "C" int undefined(int amount) {
  volatile int most = INT_MAX;
  return most + amount;  // called with 1
}

extern "C" int thread(int times) {
  int shared = 0;
  auto add = [&] {
    for (int i = 0; i < times; ++i) shared += 1;
  };
  std::thread other(add);
  add();
  other.join();
  return shared;
}
