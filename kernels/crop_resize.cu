// Windows of images that lie one behind the other in memory, each resized to a square view, antialiased.
//
// The filter is PIL's and torch's (`interpolate(antialias=True, align_corners=False)`): a triangle or Keys' cubic with
// a = -1/2, stretched by the scale where the window shrinks, its weights made to sum to 1 inside the window. Both axes
// are summed in float at once, where PIL and torch round to 8 bits in between: the results differ by one level.
// One thread makes one pixel of a view; its neighbours read nearly the same pixels, so they come from the caches.

__device__ float filter_weight(float x, int cubic)
{
    x = fabsf(x);
    if (!cubic)
        return fmaxf(1.0f - x, 0.0f);
    if (x < 1.0f)
        return (1.5f * x - 2.5f) * x * x + 1.0f;
    return x < 2.0f ? ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f : 0.0f;
}

// The input pixels begin..end-1 of an axis that make output pixel `place`, the filter's centre and its inverse stretch.
struct AxisTaps {
    int begin, end;
    float centre, inverse;

    __device__ AxisTaps(int place, int from, int to, int cubic)
    {
        const float scale = (float)from / (float)to;
        const float stretch = fmaxf(scale, 1.0f), support = (cubic ? 2.0f : 1.0f) * stretch;
        centre = scale * (place + 0.5f);
        inverse = 1.0f / stretch;
        begin = max((int)(centre - support + 0.5f), 0);
        end = min((int)(centre + support + 0.5f), from);
    }

    __device__ float weight(int pixel, int cubic) const
    {
        return filter_weight((pixel - centre + 0.5f) * inverse, cubic);
    }

    __device__ float sum(int cubic) const
    {
        float total = 0.0f;
        for (int pixel = begin; pixel < end; ++pixel)
            total += weight(pixel, cubic);
        return total;
    }
};

// grid (any, views), any block.
//   pixels   RGB bytes
//   begins   (views): where each view's image begins in `pixels`
//   widths   (views): of the images, pixels
//   windows  (views, 4): x0, y0, x1, y1 in pixels of the image, half-open, not empty
//   cubic    0 for the triangle, 1 for the cubic
//   out      (views, size, size, 3), written
extern "C" __global__ void crop_resize(
    const unsigned char* pixels, const long long* begins, const int* widths, const int* windows, int size, int cubic,
    unsigned char* out)
{
    const int view = blockIdx.y;
    const int* window = windows + 4 * view;
    const size_t stride = 3 * (size_t)widths[view];
    const unsigned char* corner = pixels + begins[view] + window[1] * stride + 3 * window[0];
    for (int place = blockIdx.x * blockDim.x + threadIdx.x; place < size * size; place += gridDim.x * blockDim.x) {
        const AxisTaps across(place % size, window[2] - window[0], size, cubic);
        const AxisTaps down(place / size, window[3] - window[1], size, cubic);
        float r = 0.0f, g = 0.0f, b = 0.0f;
        for (int y = down.begin; y < down.end; ++y) {
            const unsigned char* row = corner + y * stride;
            float row_r = 0.0f, row_g = 0.0f, row_b = 0.0f;
            for (int x = across.begin; x < across.end; ++x) {
                const float weight = across.weight(x, cubic);
                row_r += weight * row[3 * x];
                row_g += weight * row[3 * x + 1];
                row_b += weight * row[3 * x + 2];
            }
            const float weight = down.weight(y, cubic);
            r += weight * row_r;
            g += weight * row_g;
            b += weight * row_b;
        }
        const float share = 1.0f / (across.sum(cubic) * down.sum(cubic));
        unsigned char* pixel = out + 3 * ((size_t)view * size * size + place);
        pixel[0] = (unsigned char)fminf(fmaxf(r * share + 0.5f, 0.0f), 255.0f);
        pixel[1] = (unsigned char)fminf(fmaxf(g * share + 0.5f, 0.0f), 255.0f);
        pixel[2] = (unsigned char)fminf(fmaxf(b * share + 0.5f, 0.0f), 255.0f);
    }
}
