// SPDX-License-Identifier: Apache-2.0
// Kernels with one mistake each, to prove that the SIMT machine finds it.
#pragma once

// `out` has 64 floats.  nullptr, or why the launch was refused.
const char* faulty(int which, float* out);
