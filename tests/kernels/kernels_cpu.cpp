// The kernels on the CPU, for ctypes. Build: g++ -O2 -std=c++17 -fPIC -shared -I kernels tests/kernels/kernels_cpu.cpp
// Pointers and sizes as the kernels take them; order as cpu_cuda::Order; each returns the faults of its launch.

#include "cpu_cuda.h"

constexpr size_t SHARED_FLOATS = 12288;

thread_local float column_means[SHARED_FLOATS];

#include "anchor_score.cu"
#include "nms.cu"

extern "C" int cpu_score_anchors(
    const float* maps, const int* sizes, const int* boxes, int height, int width, float* scores,
    int images, int shapes, int threads, int shared_bytes, unsigned order)
{
    const cpu_cuda::Shared shared{column_means, sizeof(column_means), (size_t)shared_bytes};
    return cpu_cuda::launch(dim3(images, shapes), dim3(threads), order, shared, [=] {
        score_anchors(maps, sizes, boxes, height, width, scores);
    });
}

extern "C" int cpu_nms_topk(
    float* left, const int* boxes, int n, int k, double threshold, long long* keep, float* kept_scores,
    int images, int threads, unsigned order)
{
    return cpu_cuda::launch(dim3(images), dim3(threads), order, {}, [=] {
        nms_topk(left, boxes, n, k, threshold, keep, kept_scores);
    });
}
