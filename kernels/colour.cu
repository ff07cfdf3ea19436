// Colour in two launches: uint8 views and the plan's arrays in; flipped, jittered, greyed, blurred, solarised and
// normalised views out. The definition is colour_reference.py; every value is a float until it is stored.
//
// Contrast needs the mean of the view as the steps before it leave it, so `luma_means` goes first, over the views that
// jitter. `colour_32` then jitters a tile, and around it as far as this view's blur reaches, into shared memory, blurs it
// there along the rows, and along the columns on the way out. A block takes some tiles that lie under one another and
// keeps the rows they share.
//
// Why not a view a block, held in shared memory: 512 views are 3.9 blocks a multiprocessor of an H200, and one that is
// jittered and blurred costs several times one that is neither, so the last would leave most of the GPU idle. Tiles
// even that out, hold floats where a view of 224 pixels would fit as bytes only, and run on every card. The price is a
// second read of the views, and the pixels left and right of a tile twice: 1.34 times the jitter at a reach of 5. Where a
// multiprocessor's shared memory holds few blocks (one on a T4, two on GeForce cards), tiles of half the side let three
// times as many threads run, at 1.69 times the jitter.
//
// Measured on an H200: 0.34 ms for 512 views of 224 pixels, moco-v2, bfloat16 (bench/results/h200_kernels.json), where a
// copy of as many bytes takes 0.06. What was estimated before:
//   device memory  77 MB in, about 100 MB again with what tiles share, 154 MB out: 0.09 ms at 4 TB/s
//   instructions   counted in the machine code for sm_90, a pixel: means 45, jitter 105, blur 60, the rest 70; together
//                  280, or 7.2e9, which 132 multiprocessors issue in 0.24 ms at 1.75 GHz if they never wait
// So it is bound by instructions. 64 registers and 36 KiB of shared memory allow 5 blocks of 192 threads a
// multiprocessor. To try for 0.3: __launch_bounds__ for a sixth, another ROWS in colour.py, words instead of bytes in
// `read_pixel`.

enum Step { BRIGHTNESS, CONTRAST, SATURATION, HUE };

constexpr int PARTS = 8;            // of a view, each summed by one block
constexpr int BATCH = 4;            // pixels a thread jitters at a time: one look at the order serves all
constexpr int RUN = 8;              // outputs of the blur a thread makes at a time from values held in registers
constexpr int MOST_TAPS = 64;       // of a blur, with the zero that makes them even
constexpr int MOST_THREADS = 1024;  // of a block

struct Jitter {
    int order, steps;  // two bits a step, the first lowest; how many are applied
    float brightness, contrast, saturation, sectors;
    float mean_luma;
};

// Four taps of a blur, read from shared memory at once.
struct alignas(16) Taps {
    float of[4];
};

// Formats of the result that a bare NVRTC does not know.
struct Half {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

__device__ Jitter drawn(const float* factors, const unsigned char* order)
{
    const int packed = order[0] | order[1] << 2 | order[2] << 4 | order[3] << 6;
    return {packed, 4, factors[0], factors[1], factors[2], 6.0f * factors[3], 0.0f};
}

__device__ void read_pixel(const unsigned char* from, float* rgb)
{
    for (int c = 0; c < 3; ++c)
        rgb[c] = from[c] * (1.0f / 255.0f);
}

__device__ float luma(const float* rgb) { return 0.2989f * rgb[0] + 0.587f * rgb[1] + 0.114f * rgb[2]; }

__device__ void blend(float* rgb, float factor, float other)
{
    for (int c = 0; c < 3; ++c)
        rgb[c] = __saturatef(rgb[c] * factor + other * (1.0f - factor));
}

// Turns the hue. On the circle of six sectors a channel depends on the distance from where it is greatest.
__device__ void turn_hue(float* rgb, float sectors)
{
    const float r = rgb[0], g = rgb[1], b = rgb[2];
    const float top = max(r, max(g, b)), bottom = min(r, min(g, b)), chroma = top - bottom;
    const float difference = top == r ? g - b : top == g ? b - r : r - g;
    const float middle = top == r ? 0.0f : top == g ? 2.0f : 4.0f;
    // Of a grey pixel the difference is 0, and any divisor will do.
    float hue = middle + sectors + __fdividef(difference, max(chroma, 1e-9f));
    hue -= 6.0f * floorf(hue * (1.0f / 6.0f));
    rgb[0] = bottom + chroma * __saturatef(fabsf(hue - 3.0f) - 1.0f);
    rgb[1] = bottom + chroma * __saturatef(2.0f - fabsf(hue - 2.0f));
    rgb[2] = bottom + chroma * __saturatef(2.0f - fabsf(hue - 4.0f));
}

// All threads of a block work on one view, so they branch as one.
__device__ void apply(const Jitter& jitter, float (&rgb)[BATCH][3])
{
    for (int place = 0; place < jitter.steps; ++place) {
        const int step = jitter.order >> 2 * place & 3;
        if (step == BRIGHTNESS)
            for (int p = 0; p < BATCH; ++p)
                blend(rgb[p], jitter.brightness, 0.0f);
        else if (step == CONTRAST)
            for (int p = 0; p < BATCH; ++p)
                blend(rgb[p], jitter.contrast, jitter.mean_luma);
        else if (step == SATURATION)
            for (int p = 0; p < BATCH; ++p)
                blend(rgb[p], jitter.saturation, luma(rgb[p]));
        else
            for (int p = 0; p < BATCH; ++p)
                turn_hue(rgb[p], jitter.sectors);
    }
}

// grid (views * PARTS), any block up to MOST_THREADS.
//   views    (views, size, size, 3)
//   jitters  (views)
//   factors  (views, 4): brightness, contrast, saturation, hue in turns
//   order    (views, 4): a permutation of 0..3
//   means    (views, PARTS), written for views that jitter: they add up to the mean luma when contrast's turn comes
extern "C" __global__ void luma_means(
    const unsigned char* views, const bool* jitters, const float* factors, const unsigned char* order, int size,
    float* means)
{
    __shared__ float sums[MOST_THREADS];
    const int view = blockIdx.x / PARTS, part = blockIdx.x % PARTS, thread = threadIdx.x, threads = blockDim.x;
    if (!jitters[view])
        return;
    Jitter jitter = drawn(factors + 4 * view, order + 4 * view);
    jitter.steps = 0;
    while (jitter.steps < 3 && (jitter.order >> 2 * jitter.steps & 3) != CONTRAST)
        ++jitter.steps;
    const int pixels = size * size;
    const int begin = (long long)pixels * part / PARTS, end = (long long)pixels * (part + 1) / PARTS;
    views += (size_t)view * pixels * 3;

    float sum = 0.0f;
    for (int i = begin + thread; i < end; i += BATCH * threads) {
        float rgb[BATCH][3] = {};  // past the end it stays black, which no step before contrast changes
        for (int p = 0; p < BATCH; ++p)
            if (i + p * threads < end)
                read_pixel(views + 3 * (i + p * threads), rgb[p]);
        apply(jitter, rgb);
        for (int p = 0; p < BATCH; ++p)
            sum += luma(rgb[p]);
    }
    sums[thread] = sum;
    __syncthreads();
    for (int width = threads; width > 1;) {  // a tree, so that every run adds in the same order
        const int half = (width + 1) / 2;
        if (thread + half < width)
            sums[thread] += sums[thread + half];
        width = half;
        __syncthreads();
    }
    if (thread == 0)
        means[blockIdx.x] = sums[0] / pixels;
}

// How many pixels away a pixel still counts; 0 is no blur. A tap below a hundred-thousandth of the middle one cannot
// move a pixel by a hundredth of a level, and most blurs need few. Odd, so that the taps and a zero make fours.
__device__ int reach_of(float sigma, int half)
{
    const int reach = sigma > 0.0f ? (int)min(4.8f * sigma, (float)half) : 0;
    return reach > 0 ? reach | 1 : 0;
}

__device__ float bell(int offset, float sigma, int half)
{
    const float z = __fdividef((float)offset, sigma);
    return abs(offset) <= half ? expf(-0.5f * z * z) : 0.0f;
}

__device__ void set_taps(Taps* taps, int reach, float sigma, int half)
{
    for (int t = threadIdx.x; t < 2 * reach + 2; t += blockDim.x) {
        float sum = 0.0f;
        for (int offset = -reach; offset <= reach; ++offset)
            sum += bell(offset, sigma, half);
        taps[t / 4].of[t % 4] = t <= 2 * reach ? __fdividef(bell(t - reach, sigma, half), sum) : 0.0f;
    }
}

// Where the reflected view has pixel i; far outside, where no output looks, any pixel.
__device__ int reflected(int i, int size)
{
    const int last = size - 1;
    return max(last - abs(last - abs(i)), 0);
}

// RUN outputs in a row: out[j] is the weighted sum of 4 * fours inputs from `from + j * stride` on.
__device__ void blur_run(const float* from, int stride, const Taps* taps, int fours, float (&out)[RUN])
{
    float in[RUN + 3];
    for (int i = 0; i < RUN - 1; ++i, from += stride)
        in[i] = *from;
    for (int j = 0; j < RUN; ++j)
        out[j] = 0.0f;
    for (int four = 0; four < fours; ++four) {
        const Taps weight = taps[four];
        for (int t = 0; t < 4; ++t, from += stride)
            in[RUN - 1 + t] = *from;
        for (int j = 0; j < RUN; ++j)
            for (int t = 0; t < 4; ++t)
                out[j] += weight.of[t] * in[j + t];
        for (int i = 0; i < RUN - 1; ++i)
            in[i] = in[i + 4];
    }
}

__device__ void store(float* to, float value) { *to = value; }

// Rounds to the nearest, of two to the even one; NaNs do not occur.
__device__ void store(BFloat16* to, float value)
{
    const unsigned bits = __float_as_uint(value);
    to->bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

__device__ void store(Half* to, float value)
{
    const unsigned sign = __float_as_uint(value) >> 16 & 0x8000;
    unsigned bits = __float_as_uint(value) & 0x7fffffff;
    if (bits >= 0x47800000)  // 2^16
        bits = 0x7c00;
    else if (bits < 0x38800000)  // 2^-14: a multiple of 2^-24, to which adding a half rounds
        bits = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000;
    else
        bits = (bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    to->bits = sign | bits;
}

// Shared memory of a block: a tile and what its blur reaches, rows of interleaved pixels. The tile's own pixel (y, x)
// lies `reach` further down and right; once the row is blurred, only further down.
template <int TILE>
struct Window {
    float* values;
    int reach, side, pitch;
    Taps* taps;
};

// Fills rows `row` up to the window's last, and up to BATCH - 1 more, with jittered pixels.
template <int TILE>
__device__ void fill(
    const Window<TILE>& window, int row, const unsigned char* view, int size, int top, int left, const Jitter& jitter,
    bool greys)
{
    // A thread takes BATCH pixels of a column, its neighbour those beside them.
    const int items = (window.side - row + BATCH - 1) / BATCH * window.side;
    const float batches_an_item = __fdividef(1.0f, (float)window.side);
    for (int item = threadIdx.x; item < items; item += blockDim.x) {
        const int batch = (int)((item + 0.5f) * batches_an_item);  // item / window.side
        const int column = item - batch * window.side, begin = row + batch * BATCH;
        const unsigned char* above = view + 3 * reflected(left - window.reach + column, size);
        float rgb[BATCH][3];
        for (int p = 0; p < BATCH; ++p)
            read_pixel(above + 3 * size * reflected(top - window.reach + begin + p, size), rgb[p]);
        apply(jitter, rgb);
        if (greys)
            for (int p = 0; p < BATCH; ++p)
                rgb[p][0] = rgb[p][1] = rgb[p][2] = luma(rgb[p]);
        for (int p = 0; p < BATCH; ++p)
            for (int c = 0; c < 3; ++c)
                window.values[(begin + p) * window.pitch + 3 * column + c] = rgb[p][c];
    }
}

// Blurs rows from `row` on along themselves.
template <int TILE>
__device__ void blur_rows(const Window<TILE>& window, int row)
{
    // A thread takes a channel of a row from left to right and writes behind where it reads.
    const int rows = window.side - row;
    for (int item = threadIdx.x; item < 3 * rows; item += blockDim.x) {
        float* values = window.values + (row + item % rows) * window.pitch + item / rows;
        for (int x = 0; x < TILE; x += RUN) {
            float blurred[RUN];
            blur_run(values + 3 * x, 3, window.taps, (window.reach + 1) / 2, blurred);
            for (int j = 0; j < RUN; ++j)
                values[3 * (x + j)] = blurred[j];
        }
    }
}

// Blurs along the columns, solarises, normalises, mirrors and stores what of the tile lies in the view.
template <int TILE, typename T>
__device__ void finish(
    const Window<TILE>& window, T* out, int size, int top, int left, bool mirrors, bool inverts, const float (&gain)[3],
    const float (&bias)[3])
{
    // A thread takes half a column of a channel from top to bottom.
    for (int item = threadIdx.x; item < 2 * 3 * TILE; item += blockDim.x) {
        const int column = item % (3 * TILE), channel = column % 3, x = left + column / 3;
        const int begin = item / (3 * TILE) * (TILE / 2), end = min(begin + TILE / 2, size - top);
        if (x >= size)
            continue;
        const float times = channel == 0 ? gain[0] : channel == 1 ? gain[1] : gain[2];
        const float plus = channel == 0 ? bias[0] : channel == 1 ? bias[1] : bias[2];
        T* to = out + 3 * ((top + begin) * size + (mirrors ? size - 1 - x : x)) + channel;
        for (int row = begin; row < end; row += RUN) {
            const float* above = window.values + row * window.pitch + column;
            float values[RUN];
            if (window.reach > 0)
                blur_run(above, window.pitch, window.taps, (window.reach + 1) / 2, values);
            else
                for (int j = 0; j < RUN; ++j)
                    values[j] = above[j * window.pitch];
            if (inverts)
                for (int j = 0; j < RUN; ++j)
                    values[j] = min(values[j], 1.0f - values[j]);
            for (int j = 0; j < RUN; ++j, to += 3 * size)
                if (row + j < end)
                    store(to, values[j] * times + plus);
        }
    }
}

// Moves the rows that the next tile shares with this one to where it expects them.
template <int TILE>
__device__ void keep_rows(const Window<TILE>& window)
{
    for (int column = threadIdx.x; column < 3 * TILE; column += blockDim.x)
        for (int row = 0; row < window.side - TILE; ++row)
            window.values[row * window.pitch + column] = window.values[(row + TILE) * window.pitch + column];
}

template <int TILE>
__device__ void colour_tiles(
    const unsigned char* views, const bool* flips, const bool* jitters, const float* factors,
    const unsigned char* order, const bool* greys, const float* sigmas, const bool* solarises, const float* means,
    int size, int half, const float (&gain)[3], const float (&bias)[3], int format, void* out,
    float* window_values, Taps* taps)
{
    static_assert(TILE % (2 * RUN) == 0 && TILE % BATCH == 0);
    const int view = blockIdx.z, left = blockIdx.x * TILE;
    const size_t first = (size_t)view * size * size * 3;
    const bool mirrors = flips[view], turns_grey = greys[view], inverts = solarises[view];

    Jitter jitter = drawn(factors + 4 * view, order + 4 * view);
    if (!jitters[view])
        jitter.steps = 0;
    else
        for (int part = 0; part < PARTS; ++part)
            jitter.mean_luma += means[view * PARTS + part];

    const int reach = reach_of(sigmas[view], half);
    const int side = reach > 0 ? TILE + 2 * reach + 1 : TILE;  // one more, for the tap that is zero
    // An odd pitch: threads on different rows use different banks.
    const Window<TILE> window = {window_values, reach, side, 3 * side | 1, taps};
    if (reach > 0)
        set_taps(taps, reach, sigmas[view], half);

    // A block's tiles lie under one another, and all but the first find their upper rows done.
    const int tiles = (size + TILE - 1) / TILE;
    const int begin = tiles * blockIdx.y / gridDim.y, end = tiles * (blockIdx.y + 1) / gridDim.y;
    for (int tile = begin; tile < end; ++tile) {
        const int top = tile * TILE, row = tile > begin ? side - TILE : 0;
        fill(window, row, views + first, size, top, left, jitter, turns_grey);
        __syncthreads();
        if (reach > 0) {
            blur_rows(window, row);
            __syncthreads();
        }
        if (format == 0)
            finish(window, (float*)out + first, size, top, left, mirrors, inverts, gain, bias);
        else if (format == 1)
            finish(window, (Half*)out + first, size, top, left, mirrors, inverts, gain, bias);
        else
            finish(window, (BFloat16*)out + first, size, top, left, mirrors, inverts, gain, bias);
        __syncthreads();
        keep_rows(window);
        __syncthreads();
    }
}

// grid (tiles across, anything up to tiles down, views), any block; dynamic shared memory: at the greatest reach side,
// rounded up to a BATCH, times pitch floats, as above. The number is the side of a tile.
//   views, jitters, factors, order  as in luma_means
//   flips, greys, solarises         (views)
//   sigmas                          (views) pixels, 0 for none
//   means                           (views, PARTS), from luma_means
//   half                            of the blur's kernel, 2 * half + 1 taps; 2 * (half | 1) + 2 <= MOST_TAPS
//   gain, bias                      per channel: the result is value * gain + bias
//   format                          of the result: 0 float, 1 half, 2 bfloat16
//   out                             (views, size, size, 3), written
extern "C" __global__ void colour_32(
    const unsigned char* views, const bool* flips, const bool* jitters, const float* factors,
    const unsigned char* order, const bool* greys, const float* sigmas, const bool* solarises, const float* means,
    int size, int half, float gain_r, float gain_g, float gain_b, float bias_r, float bias_g, float bias_b, int format,
    void* out)
{
    extern __shared__ float window_values[];
    __shared__ Taps taps[MOST_TAPS / 4];
    colour_tiles<32>(
        views, flips, jitters, factors, order, greys, sigmas, solarises, means, size, half, {gain_r, gain_g, gain_b},
        {bias_r, bias_g, bias_b}, format, out, window_values, taps);
}

extern "C" __global__ void colour_16(
    const unsigned char* views, const bool* flips, const bool* jitters, const float* factors,
    const unsigned char* order, const bool* greys, const float* sigmas, const bool* solarises, const float* means,
    int size, int half, float gain_r, float gain_g, float gain_b, float bias_r, float bias_g, float bias_b, int format,
    void* out)
{
    extern __shared__ float window_values[];
    __shared__ Taps taps[MOST_TAPS / 4];
    colour_tiles<16>(
        views, flips, jitters, factors, order, greys, sigmas, solarises, means, size, half, {gain_r, gain_g, gain_b},
        {bias_r, bias_g, bias_b}, format, out, window_values, taps);
}
