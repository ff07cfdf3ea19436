// The kernels on the CPU, for ctypes. Build: g++ -O2 -std=c++17 -fPIC -shared -I kernels tests/kernels/kernels_cpu.cpp
// Pointers and sizes as the kernels take them; thread_order as cpu_cuda::Order; each returns the faults of its
// launch.

#include "cpu_cuda.h"

constexpr size_t SHARED_FLOATS = 12288;

thread_local double column_means[SHARED_FLOATS / 2];
thread_local float window_values[SHARED_FLOATS];

#include "anchor_score.cu"
#include "colour.cu"
#include "crop_resize.cu"
#include "nms.cu"

namespace batch_norm {  // names that colour.cu has too
#include "batch_norm.cu"
}

extern "C" int cpu_score_anchors(
    const float* maps, const int* sizes, const int* boxes, int height, int width, float* scores,
    int images, int shapes, int threads, int shared_bytes, unsigned thread_order)
{
    const cpu_cuda::Shared shared{column_means, sizeof(column_means), (size_t)shared_bytes};
    return cpu_cuda::launch(dim3(images, shapes), dim3(threads), thread_order, shared, [=] {
        score_anchors(maps, sizes, boxes, height, width, scores);
    });
}

extern "C" int cpu_nms_topk(
    float* left, const int* boxes, int n, int k, double threshold, long long* keep, float* kept_scores,
    int images, int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(images), dim3(threads), thread_order, {}, [=] {
        nms_topk(left, boxes, n, k, threshold, keep, kept_scores);
    });
}

extern "C" int cpu_luma_means(
    const unsigned char* views, const bool* jitters, const float* factors, const unsigned char* order, int size,
    float* means, int blocks, int threads, int, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(blocks), dim3(threads), thread_order, {}, [=] {
        luma_means(views, jitters, factors, order, size, means);
    });
}

extern "C" int cpu_colour_32(
    const unsigned char* views, const bool* flips, const bool* jitters, const float* factors,
    const unsigned char* order, const bool* greys, const float* sigmas, const bool* solarises, const float* means,
    int size, int half, float gain_r, float gain_g, float gain_b, float bias_r, float bias_g, float bias_b, int format,
    void* out, int across, int down, int count, int threads, int shared_bytes, unsigned thread_order)
{
    const cpu_cuda::Shared shared{window_values, sizeof(window_values), (size_t)shared_bytes};
    return cpu_cuda::launch(dim3(across, down, count), dim3(threads), thread_order, shared, [=] {
        colour_32(
            views, flips, jitters, factors, order, greys, sigmas, solarises, means, size, half, gain_r, gain_g, gain_b,
            bias_r, bias_g, bias_b, format, out);
    });
}

extern "C" int cpu_colour_16(
    const unsigned char* views, const bool* flips, const bool* jitters, const float* factors,
    const unsigned char* order, const bool* greys, const float* sigmas, const bool* solarises, const float* means,
    int size, int half, float gain_r, float gain_g, float gain_b, float bias_r, float bias_g, float bias_b, int format,
    void* out, int across, int down, int count, int threads, int shared_bytes, unsigned thread_order)
{
    const cpu_cuda::Shared shared{window_values, sizeof(window_values), (size_t)shared_bytes};
    return cpu_cuda::launch(dim3(across, down, count), dim3(threads), thread_order, shared, [=] {
        colour_16(
            views, flips, jitters, factors, order, greys, sigmas, solarises, means, size, half, gain_r, gain_g, gain_b,
            bias_r, bias_g, bias_b, format, out);
    });
}

extern "C" int cpu_crop_resize(
    const long long* corners, const int* steps, const int* sizes, int size, int cubic, unsigned char* out, int across,
    int down, int views, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(across, down, views), dim3(COLUMNS, LINES), thread_order, {}, [=] {
        crop_resize(corners, steps, sizes, size, cubic, out);
    });
}

extern "C" int cpu_moments(
    const void* x, int format, int positions, int channels, void* parts, int tiles, int blocks, int devices,
    int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(tiles, blocks, devices), dim3(threads), thread_order, {}, [=] {
        batch_norm::moments(x, format, positions, channels, parts);
    });
}

extern "C" int cpu_join(
    const void* parts, int format, int positions, int channels, int count, void* one, int tiles, int blocks,
    int devices, int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(tiles, blocks, devices), dim3(threads), thread_order, {}, [=] {
        batch_norm::join(parts, format, positions, channels, count, one);
    });
}

extern "C" int cpu_normalise(
    const void* x, int format, int positions, int channels, const void* parts, int ranks, int count,
    const void* weight, const void* bias, double epsilon, void* y, void* saved, void* seen, int tiles, int blocks,
    int devices, int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(tiles, blocks, devices), dim3(threads), thread_order, {}, [=] {
        batch_norm::normalise(
            x, format, positions, channels, parts, ranks, count, weight, bias, epsilon, y, saved, seen);
    });
}

extern "C" int cpu_gradient_sums(
    const void* dy, const void* x, int format, int positions, int channels, const void* saved, void* parts, int tiles,
    int blocks, int devices, int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(tiles, blocks, devices), dim3(threads), thread_order, {}, [=] {
        batch_norm::gradient_sums(dy, x, format, positions, channels, saved, parts);
    });
}

extern "C" int cpu_gradient(
    const void* dy, const void* x, int format, int positions, int channels, const void* parts, int ranks, int count,
    const void* own, const void* weight, const void* saved, void* dx, void* slopes, int tiles, int blocks, int devices,
    int threads, unsigned thread_order)
{
    return cpu_cuda::launch(dim3(tiles, blocks, devices), dim3(threads), thread_order, {}, [=] {
        batch_norm::gradient(
            dy, x, format, positions, channels, parts, ranks, count, own, weight, saved, dx, slopes);
    });
}
