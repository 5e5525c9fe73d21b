// What is asked of a stream while a graph is recorded is kept for the graph's launches.
#pragma once

#include <functional>

namespace ptxsim {

// True: a graph is being recorded, and has the work; it is not to be done now.
bool record(std::function<void()> work);

} // namespace ptxsim
