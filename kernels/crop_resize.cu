// Windows of images, each resized to a square view, antialiased; wherever in memory an image lies, and however turned.
//
// The filter is PIL's and torch's (`interpolate(antialias=True, align_corners=False)`): a triangle or Keys' cubic with
// a = -1/2, stretched by the scale where the window shrinks, its weights made to sum to 1 inside the window: no pixel
// outside it is read. Both axes are summed in float at once, where PIL and torch round to 8 bits in between: the results
// differ by one level.
//
// A block makes a tile of a view. The weights of the tile's columns and rows are worked out once and kept in shared
// memory, TAPS at a time; all sums run in one order, so that equal pixels give equal views wherever they lie.
//
// Counted in the machine code for sm_90 (64 registers, 8 KiB of shared memory; no GPU was there to measure on): an
// output pixel costs about 110 instructions, 25 for each row that it is made of and 15 for each tap. For 224 px out of
// 300×225, 2.7×2 taps, that is 240 instructions and 7 bytes of memory, read once and written: 512 views are 0.2 ms of an
// H100's instructions and 0.07 of its bytes. In two passes with floats in between, as DALI resizes, they are 31 bytes
// an output pixel, 0.3 ms. For 3000×3000 px, 27×27 taps, it is 9 ms against 8: as much as both, where decoding
// such photos takes a hundred.

constexpr int COLUMNS = 32, LINES = 8, EACH = 4;  // a block's threads, and the rows of each, LINES apart
constexpr int ROWS = LINES * EACH, TAPS = 32;     // rows of a tile, and weights kept of a column or row

// How pixels of the window make those of the view, along one axis.
struct Axis {
    int from, cubic;
    float scale, support, inverse;

    __device__ Axis(int from, int to, int cubic) : from(from), cubic(cubic), scale((float)from / (float)to)
    {
        const float stretch = fmaxf(scale, 1.0f);
        support = (cubic ? 2.0f : 1.0f) * stretch;
        inverse = 1.0f / stretch;
    }

    __device__ float centre(int place) const { return scale * (place + 0.5f); }

    // Pixels begin..end-1 make output pixel `place`.
    __device__ int begin(int place) const { return max((int)(centre(place) - support + 0.5f), 0); }
    __device__ int end(int place) const { return min((int)(centre(place) + support + 0.5f), from); }
    __device__ int most() const { return (int)(2.0f * support) + 2; }

    __device__ float weight(int place, int pixel) const
    {
        const float x = fabsf((pixel - centre(place) + 0.5f) * inverse);
        if (!cubic)
            return fmaxf(1.0f - x, 0.0f);
        if (x < 1.0f)
            return (1.5f * x - 2.5f) * x * x + 1.0f;
        return x < 2.0f ? ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f : 0.0f;
    }
};

__device__ unsigned char to_byte(float x)
{
    return (unsigned char)fminf(fmaxf(x + 0.5f, 0.0f), 255.0f);
}

// grid (columns of tiles, rows of tiles, views), block (COLUMNS, LINES).
//   corners  (views): address of each window's upper left pixel, RGB bytes
//   steps    (views, 2): bytes from a pixel to its right neighbour, and to the one below
//   sizes    (views, 2): width and height of the windows, not 0
//   cubic    0 for the triangle, 1 for the cubic
//   out      (views, size, size, 3), written
extern "C" __global__ void crop_resize(
    const long long* corners, const int* steps, const int* sizes, int size, int cubic, unsigned char* out)
{
    __shared__ float across[TAPS][COLUMNS], down[ROWS][TAPS];
    const int view = blockIdx.z, column = threadIdx.x, line = threadIdx.y;
    const int x = blockIdx.x * COLUMNS + column, first = blockIdx.y * ROWS + line;
    const long long right = steps[2 * view], below = steps[2 * view + 1];
    const unsigned char* corner = (const unsigned char*)corners[view];
    const Axis horizontal(sizes[2 * view], size, cubic), vertical(sizes[2 * view + 1], size, cubic);
    const int begin = horizontal.begin(x), end = horizontal.end(x);
    float r[EACH] = {}, g[EACH] = {}, b[EACH] = {}, total[EACH] = {};
    // As many turns for every thread of the block; one where the window is up to 15 (cubic: 7) times the view.
    for (int top = 0; top < vertical.most(); top += TAPS)
        for (int left = 0; left < horizontal.most(); left += TAPS) {
            __syncthreads();
            for (int tap = line; tap < min(TAPS, horizontal.most() - left); tap += LINES)
                across[tap][column] = horizontal.weight(x, begin + left + tap);
            if (column < min(TAPS, vertical.most() - top))
                for (int k = 0; k < EACH; ++k)
                    down[line + k * LINES][column] =
                        vertical.weight(first + k * LINES, vertical.begin(first + k * LINES) + top + column);
            __syncthreads();
            const int taps_across = min(end - begin - left, TAPS);
#pragma unroll
            for (int k = 0; k < EACH; ++k) {
                const int y = first + k * LINES, from = vertical.begin(y) + top;
                const int taps_down = min(vertical.end(y) - from, TAPS);
                const unsigned char* row = corner + from * below + (begin + left) * right;
                for (int j = 0; j < taps_down; ++j, row += below) {
                    float row_r = 0.0f, row_g = 0.0f, row_b = 0.0f, row_total = 0.0f;
                    const unsigned char* pixel = row;
                    for (int i = 0; i < taps_across; ++i, pixel += right) {
                        const float weight = across[i][column];
                        row_r += weight * pixel[0];
                        row_g += weight * pixel[1];
                        row_b += weight * pixel[2];
                        row_total += weight;
                    }
                    const float weight = down[line + k * LINES][j];
                    r[k] += weight * row_r;
                    g[k] += weight * row_g;
                    b[k] += weight * row_b;
                    total[k] += weight * row_total;
                }
            }
        }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const int y = first + k * LINES;
        if (x >= size || y >= size)
            continue;
        const float share = 1.0f / total[k];
        unsigned char* pixel = out + 3 * (((size_t)view * size + y) * size + x);
        pixel[0] = to_byte(r[k] * share);
        pixel[1] = to_byte(g[k] * share);
        pixel[2] = to_byte(b[k] * share);
    }
}
