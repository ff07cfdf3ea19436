// Runs an unchanged .cu on the CPU: include this, then the source, then call cpu_cuda::launch.
//
// Every thread of a block is a fibre (ucontext) that runs until __syncthreads() or its end; once all have arrived, all
// go on. Within such a phase they run one after the other, in an order of the caller's choice: a kernel that lacks a
// barrier gives another result in another order. Blocks run one after the other. There are no warps, no memory model
// and no launch limits here.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// All fibres are one thread of the operating system. Inside a function, thread_local means static, as __shared__ does;
// and "extern __shared__ float name[];" declares an array that the including file defines: thread_local float name[N].
#define __shared__ thread_local
#define __syncthreads() cpu_cuda::wait_at_barrier()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

// The intrinsics in use; the fast ones are exact here.
static inline float __saturatef(float x) { return min(max(x, 0.0f), 1.0f); }
static inline float __fdividef(float x, float y) { return x / y; }

static inline unsigned __float_as_uint(float x)
{
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float __uint_as_float(unsigned bits)
{
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

namespace cpu_cuda {

enum Order : unsigned { forward = 0, reversed = 1 };  // any other number shuffles, with that number as the seed

// Dynamic shared memory: the array the including file defines, and how much of it the launch asks for.
struct Shared {
    void* begin = nullptr;
    size_t bytes = 0;
    size_t asked = 0;
};

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    dim3 index;
    bool done = false;
};

static ucontext_t scheduler;
static std::vector<Fibre> fibres;
static Fibre* running = nullptr;
static std::function<void()> kernel;

static void wait_at_barrier() { swapcontext(&running->context, &scheduler); }

static void run_thread()
{
    kernel();
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

// Returns the barriers at which some threads of the block waited after others had ended.
static int run_block(unsigned order)
{
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    if (fibres.size() < threads)
        fibres.resize(threads);
    std::vector<Fibre*> live;
    for (unsigned i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_thread, 0);
        fibre.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
        fibre.done = false;
        live.push_back(&fibre);
    }
    if (order == reversed)
        std::reverse(live.begin(), live.end());
    std::mt19937 generator(order);
    int divergent = 0;
    while (!live.empty()) {
        if (order > reversed)
            std::shuffle(live.begin(), live.end(), generator);
        for (Fibre* fibre : live) {
            running = fibre;
            threadIdx = fibre->index;
            swapcontext(&scheduler, &fibre->context);
        }
        const size_t before = live.size();
        live.erase(std::remove_if(live.begin(), live.end(), [](Fibre* f) { return f->done; }), live.end());
        if (!live.empty() && live.size() < before)
            ++divergent;
    }
    return divergent;
}

// Runs every block of the grid. Shared memory starts as NaNs. Returns the faults: barriers that not all threads of a
// block reach, and blocks that wrote beyond the shared memory they asked for.
static int launch(dim3 grid, dim3 block, unsigned order, Shared shared, std::function<void()> body)
{
    gridDim = grid;
    blockDim = block;
    kernel = body;
    int faults = 0;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                if (shared.begin)
                    std::memset(shared.begin, 0xFF, shared.bytes);
                faults += run_block(order);
                const unsigned char* bytes = static_cast<const unsigned char*>(shared.begin);
                const auto written = [](unsigned char byte) { return byte != 0xFF; };
                faults += std::any_of(bytes + shared.asked, bytes + shared.bytes, written);
            }
    return faults;
}

}  // namespace cpu_cuda
