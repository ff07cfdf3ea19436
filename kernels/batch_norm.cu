// BatchNorm over parts of a batch, one virtual device each: two launches forward (`moments`, `normalise`) and two
// backward (`gradient_sums`, `gradient`). Memory is seen as (devices, positions, channels): rows of a device lie side by
// side, channels last, and a position is a pixel of a row.
//
// A block takes CHANNELS channels of one device and ROUND positions of every ROUND * gridDim.y, so all blocks walk
// through the memory together. In the first launch of a pair each leaves a part of the result; in the second every block
// puts the parts of its device together, in a fixed order; where these are many, or on several ranks, `join` makes one of
// them in between. No block waits for another, nothing is added atomically, and every run gives the same bits on every
// GPU.
//
// Large means cost no digits: what is summed are differences, of values from the first that a thread meets and of means
// from the first mean, and moments of parts are joined as Chan, Golub and LeVeque (1979) do. Sums are floats, those of
// doubles are doubles.
//
// Forward reads x twice and writes y, backward reads x and dy twice and writes dx: 6 and 10 bytes an element of
// bfloat16, as torch's own BatchNorm. A ReLU that follows is not folded in, because it would have to be found in networks
// that are not ours; it would save 4 bytes forward and 6 backward.
//
// Nothing here has been measured on a GPU.

constexpr int NORM_THREADS = 256;  // of a block
constexpr int CHANNELS = 64;       // of a block: of bfloat16 a line of the cache
constexpr int ROUND = 32;          // positions, at most so many that the threads of a block stand at side by side
constexpr int WORD = 16;           // bytes that a thread reads at once, where the channels divide into such
constexpr int QUARTERS = NORM_THREADS / CHANNELS;
constexpr int SPACE = (2 * NORM_THREADS * WORD / 2 + ROUND) / 2;  // doubles that a block shares

// A format that a bare NVRTC does not know.
struct BFloat16 {
    unsigned short bits;
};

__device__ float wide(BFloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }
__device__ float wide(float value) { return value; }
__device__ double wide(double value) { return value; }

__device__ void narrow(float* to, float value) { *to = value; }
__device__ void narrow(double* to, double value) { *to = value; }

// Rounds to the nearest, of two to the even one.
__device__ void narrow(BFloat16* to, float value)
{
    const unsigned bits = __float_as_uint(value);
    to->bits = value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Neighbouring channels of a position.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T of[V];
};

template <int V, typename T>
__device__ Pack<T, V> read(const T* x, int position, int channels, int channel)
{
    return *(const Pack<T, V>*)(x + (size_t)position * channels + channel);
}

template <int V>
__device__ int first_channel() { return blockIdx.x * CHANNELS + threadIdx.x % (CHANNELS / V) * V; }

template <int V>
__device__ int first_row() { return threadIdx.x / (CHANNELS / V); }

// Calls f with every position of this thread, which has V channels of each.
template <int V, typename F>
__device__ void for_positions(int positions, F f)
{
    constexpr int rows = NORM_THREADS / (CHANNELS / V);
    for (int round = blockIdx.y * ROUND; round < positions; round += gridDim.y * ROUND)
        for (int position = round + first_row<V>(); position < min(round + ROUND, positions); position += rows)
            f(position);
}

// The positions that the blocks number `part` of `parts` take.
__device__ int share(int positions, int part, int parts)
{
    const int turns = positions / (parts * ROUND), left = positions - (turns * parts + part) * ROUND;
    return turns * ROUND + max(min(left, ROUND), 0);
}

// How many values, their mean, and the squares of their differences from it, summed.
template <typename A>
struct Moments {
    A count, mean, squares;
};

// Joins moments one after the other.
template <typename A>
struct Joint {
    A first = 0, count = 0, sum = 0, squares = 0;  // about the first mean

    __device__ void add(const Moments<A>& other)
    {
        if (count == 0)
            first = other.mean;
        const A apart = other.mean - first, weighed = other.count * apart;
        count += other.count;
        sum += weighed;
        squares += other.squares + weighed * apart;
    }

    __device__ Moments<A> moments() const
    {
        if (count == 0)
            return {0, 0, 0};
        const A apart = sum / count, rest = squares - sum * apart;
        return {count, first + apart, rest < 0 ? 0 : rest};
    }
};

// Leaves this block's moments of its channels in part (2, channels): means, squares.
template <int V, typename T, typename A>
__device__ void moments_of_block(const T* x, int positions, int channels, A* part, A* space)
{
    constexpr int rows = NORM_THREADS / (CHANNELS / V);
    const int channel = first_channel<V>(), row = first_row<V>(), begin = blockIdx.y * ROUND + row;
    A sum[V] = {}, squares[V] = {}, count = 0;
    Pack<T, V> first = {};
    if (channel < channels) {
        if (begin < positions)
            first = read<V>(x, begin, channels, channel);
        for_positions<V>(positions, [&](int position) {
            const Pack<T, V> values = read<V>(x, position, channels, channel);
            for (int v = 0; v < V; ++v) {
                const A apart = wide(values.of[v]) - wide(first.of[v]);
                sum[v] += apart;
                squares[v] += apart * apart;
            }
            count += 1;
        });
    }
    A *means = space, *rests = means + rows * CHANNELS, *counts = rests + rows * CHANNELS;
    for (int v = 0; v < V; ++v) {
        const Joint<A> joint = {wide(first.of[v]), count, sum[v], squares[v]};
        const Moments<A> all = joint.moments();
        means[row * CHANNELS + channel % CHANNELS + v] = all.mean;
        rests[row * CHANNELS + channel % CHANNELS + v] = all.squares;
    }
    if (channel % CHANNELS == 0)
        counts[row] = count;
    __syncthreads();
    const int lane = threadIdx.x, its = blockIdx.x * CHANNELS + lane;
    if (lane < CHANNELS && its < channels) {
        Joint<A> joint;
        for (int other = 0; other < rows; ++other)
            joint.add({counts[other], means[other * CHANNELS + lane], rests[other * CHANNELS + lane]});
        part[its] = joint.moments().mean;
        part[channels + its] = joint.moments().squares;
    }
}

// What the blocks of a first launch left: (ranks, devices, count, 2, channels).
template <typename A>
struct Parts {
    const A* values;
    int ranks, devices, count, channels;

    // Of a device, where i counts those of all ranks.
    __device__ const A* at(int device, int i) const
    {
        return values + (((size_t)(i / count) * devices + device) * count + i % count) * 2 * channels;
    }
};

// The moments of a device's channel, that of thread modulo CHANNELS; for all threads of a block at once.
template <typename A>
__device__ Moments<A> moments_of_device(const Parts<A>& parts, int device, int positions, A* space)
{
    const int lane = threadIdx.x % CHANNELS, channel = blockIdx.x * CHANNELS + lane;
    Moments<A>* quarters = (Moments<A>*)space;
    Joint<A> mine, all;
    if (channel < parts.channels)
        for (int i = threadIdx.x / CHANNELS; i < parts.ranks * parts.count; i += QUARTERS) {
            const A* at = parts.at(device, i) + channel;
            mine.add({(A)share(positions, i % parts.count, parts.count), at[0], at[parts.channels]});
        }
    __syncthreads();  // all have read what the space held
    quarters[threadIdx.x] = mine.moments();
    __syncthreads();
    for (int quarter = 0; quarter < QUARTERS; ++quarter)
        all.add(quarters[quarter * CHANNELS + lane]);
    return all.moments();
}

// Of a channel, the gradient of y and its product with the normalised x, summed.
template <typename A>
struct Sums {
    A slopes, products;
};

// The sums of a device's channel, as `moments_of_device`.
template <typename A>
__device__ Sums<A> sums_of_device(const Parts<A>& parts, int device, A* space)
{
    const int lane = threadIdx.x % CHANNELS, channel = blockIdx.x * CHANNELS + lane;
    Sums<A>* quarters = (Sums<A>*)space;
    Sums<A> mine = {}, all = {};
    if (channel < parts.channels)
        for (int i = threadIdx.x / CHANNELS; i < parts.ranks * parts.count; i += QUARTERS) {
            const A* at = parts.at(device, i) + channel;
            mine.slopes += at[0];
            mine.products += at[parts.channels];
        }
    __syncthreads();  // all have read what the space held
    quarters[threadIdx.x] = mine;
    __syncthreads();
    for (int quarter = 0; quarter < QUARTERS; ++quarter) {
        all.slopes += quarters[quarter * CHANNELS + lane].slopes;
        all.products += quarters[quarter * CHANNELS + lane].products;
    }
    return all;
}

// Makes one part (2, channels) of a device's.
template <typename A>
__device__ void join_block(const Parts<A>& parts, int positions, A* one, A* space)
{
    const int its = blockIdx.x * CHANNELS + threadIdx.x;
    A first, second;
    if (positions > 0) {
        const Moments<A> all = moments_of_device(parts, blockIdx.z, positions, space);
        first = all.mean;
        second = all.squares;
    } else {
        const Sums<A> all = sums_of_device(parts, blockIdx.z, space);
        first = all.slopes;
        second = all.products;
    }
    if (threadIdx.x < CHANNELS && its < parts.channels) {
        one[its] = first;
        one[parts.channels + its] = second;
    }
}

template <int V, typename T, typename A>
__device__ void normalise_block(
    const T* x, int positions, const Parts<A>& parts, const A* weight, const A* bias, double epsilon, T* y, A* saved,
    A* seen, A* space)
{
    const int channels = parts.channels;
    const int thread = threadIdx.x, its = blockIdx.x * CHANNELS + thread;
    const bool has_channel = thread < CHANNELS && its < channels;
    if (blockIdx.y == 0 && blockIdx.z == 0) {
        A mean = 0, variance = 0;
        for (int device = 0; device < (int)gridDim.z; ++device) {
            const Moments<A> all = moments_of_device(parts, device, positions, space);
            mean += all.mean;
            variance += all.squares / (all.count - 1);
        }
        if (has_channel) {
            seen[its] = mean / gridDim.z;
            seen[channels + its] = variance / gridDim.z;
        }
    }
    const Moments<A> all = moments_of_device(parts, blockIdx.z, positions, space);
    const A inverse = 1 / sqrt(all.squares / all.count + (A)epsilon);
    if (has_channel && blockIdx.y == 0) {
        saved[(size_t)blockIdx.z * channels + its] = all.mean;
        saved[(size_t)(gridDim.z + blockIdx.z) * channels + its] = inverse;
    }
    A *means = space, *gains = space + CHANNELS;
    __syncthreads();
    if (has_channel) {
        means[thread] = all.mean;
        gains[thread] = weight[its] * inverse;
    }
    __syncthreads();
    const int channel = first_channel<V>();
    if (channel >= channels)
        return;
    A mean[V], gain[V], plus[V];
    for (int v = 0; v < V; ++v) {
        mean[v] = means[channel % CHANNELS + v];
        gain[v] = gains[channel % CHANNELS + v];
        plus[v] = bias[channel + v];
    }
    for_positions<V>(positions, [&](int position) {
        Pack<T, V> values = read<V>(x, position, channels, channel);
        for (int v = 0; v < V; ++v)
            narrow(&values.of[v], (wide(values.of[v]) - mean[v]) * gain[v] + plus[v]);
        *(Pack<T, V>*)(y + (size_t)position * channels + channel) = values;
    });
}

// Leaves this block's sums in part (2, channels): of dy, and of dy times the normalised x.
template <int V, typename T, typename A>
__device__ void gradient_sums_of_block(
    const T* dy, const T* x, int positions, int channels, const A* saved, A* part, A* space)
{
    constexpr int rows = NORM_THREADS / (CHANNELS / V);
    const int channel = first_channel<V>(), row = first_row<V>();
    const A *means = saved + (size_t)blockIdx.z * channels, *inverses = means + (size_t)gridDim.z * channels;
    A mean[V] = {}, sum[V] = {}, product[V] = {};
    if (channel < channels) {
        for (int v = 0; v < V; ++v)
            mean[v] = means[channel + v];
        for_positions<V>(positions, [&](int position) {
            const Pack<T, V> slopes = read<V>(dy, position, channels, channel);
            const Pack<T, V> values = read<V>(x, position, channels, channel);
            for (int v = 0; v < V; ++v) {
                sum[v] += wide(slopes.of[v]);
                product[v] += wide(slopes.of[v]) * (wide(values.of[v]) - mean[v]);
            }
        });
    }
    A *sums = space, *products = space + rows * CHANNELS;
    for (int v = 0; v < V; ++v) {
        sums[row * CHANNELS + channel % CHANNELS + v] = sum[v];
        products[row * CHANNELS + channel % CHANNELS + v] = product[v];
    }
    __syncthreads();
    const int lane = threadIdx.x, its = blockIdx.x * CHANNELS + lane;
    if (lane < CHANNELS && its < channels) {
        A all = 0, all_products = 0;
        for (int other = 0; other < rows; ++other) {
            all += sums[other * CHANNELS + lane];
            all_products += products[other * CHANNELS + lane];
        }
        part[its] = all;
        part[channels + its] = all_products * inverses[its];
    }
}

template <int V, typename T, typename A>
__device__ void gradient_block(
    const T* dy, const T* x, int positions, const Parts<A>& parts, const Parts<A>& own, const A* weight, const A* saved,
    T* dx, A* slopes, A* space)
{
    const int channels = parts.channels;
    const int thread = threadIdx.x, its = blockIdx.x * CHANNELS + thread;
    const bool has_channel = thread < CHANNELS && its < channels;
    const A *means = saved + (size_t)blockIdx.z * channels, *inverses = means + (size_t)gridDim.z * channels;
    if (blockIdx.y == 0 && blockIdx.z == 0) {
        Sums<A> here = {};
        for (int device = 0; device < (int)gridDim.z; ++device) {
            const Sums<A> its_sums = sums_of_device(own, device, space);
            here.slopes += its_sums.slopes;
            here.products += its_sums.products;
        }
        if (has_channel) {
            slopes[its] = here.products;
            slopes[channels + its] = here.slopes;
        }
    }
    const Sums<A> all = sums_of_device(parts, blockIdx.z, space);
    A *slope_means = space, *product_means = space + CHANNELS;
    __syncthreads();
    if (has_channel) {
        const A count = (A)positions * parts.ranks;
        slope_means[thread] = all.slopes / count;
        product_means[thread] = all.products / count * inverses[its];
    }
    __syncthreads();
    const int channel = first_channel<V>();
    if (channel >= channels)
        return;
    A mean[V], gain[V], slope_mean[V], product_mean[V];
    for (int v = 0; v < V; ++v) {
        mean[v] = means[channel + v];
        gain[v] = weight[channel + v] * inverses[channel + v];
        slope_mean[v] = slope_means[channel % CHANNELS + v];
        product_mean[v] = product_means[channel % CHANNELS + v];
    }
    for_positions<V>(positions, [&](int position) {
        Pack<T, V> out = read<V>(dy, position, channels, channel);
        const Pack<T, V> values = read<V>(x, position, channels, channel);
        for (int v = 0; v < V; ++v) {
            const A apart = wide(values.of[v]) - mean[v];
            narrow(&out.of[v], gain[v] * (wide(out.of[v]) - slope_mean[v] - apart * product_mean[v]));
        }
        *(Pack<T, V>*)(dx + (size_t)position * channels + channel) = out;
    });
}

template <typename T_, typename A_, int V_>
struct Kind {
    using T = T_;  // of activations
    using A = A_;  // of sums and parameters
    static constexpr int V = V_;
};

template <typename T, typename A, typename F>
__device__ void by_words(int channels, size_t addresses, F f)
{
    constexpr int V = WORD / sizeof(T);
    if (channels % V == 0 && addresses % WORD == 0)
        f(Kind<T, A, V>());
    else
        f(Kind<T, A, 1>());
}

// Calls f with the kind that a format asks for: 0 bfloat16 with float sums and parameters, 1 float, 2 double.
template <typename F>
__device__ void by_format(int format, int channels, size_t addresses, F f)
{
    if (format == 0)
        by_words<BFloat16, float>(channels, addresses, f);
    else if (format == 1)
        by_words<float, float>(channels, addresses, f);
    else
        by_words<double, double>(channels, addresses, f);
}

// All: grid (channels / CHANNELS, any, devices), block NORM_THREADS.
//   x, y, dy, dx  (devices, positions, channels), of the format
//   left          (devices, gridDim.y, 2, channels), written
//   parts         (ranks, devices, count, 2, channels), left by the first of a pair; ranks is 1 unless the statistics are
//                 taken over several, each of which has one device
//   own           (devices, count, 2, channels), this rank's
//   weight, bias  (channels)
//   saved         (2, devices, channels): mean, and 1 / sqrt(variance + epsilon)
//   seen          (2, channels): means over the devices of mean and unbiased variance
//   slopes        (2, channels): gradients of weight and bias
extern "C" __global__ void moments(const void* x, int format, int positions, int channels, void* left)
{
    __shared__ double space[SPACE];
    const size_t skipped = (size_t)blockIdx.z * positions * channels;
    by_format(format, channels, (size_t)x, [&](auto kind) {
        using K = decltype(kind);
        using A = typename K::A;
        A* part = (A*)left + ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels;
        moments_of_block<K::V>((const typename K::T*)x + skipped, positions, channels, part, (A*)space);
    });
}

// gridDim.y is 1.
//   parts      (devices, count, 2, channels)
//   positions  0 where the parts are sums
//   one        (devices, 2, channels), written
extern "C" __global__ void join(const void* parts, int format, int positions, int channels, int count, void* one)
{
    __shared__ double space[SPACE];
    const size_t skipped = (size_t)blockIdx.z * 2 * channels;
    if (format == 2) {
        const Parts<double> all = {(const double*)parts, 1, (int)gridDim.z, count, channels};
        join_block(all, positions, (double*)one + skipped, space);
    } else {
        const Parts<float> all = {(const float*)parts, 1, (int)gridDim.z, count, channels};
        join_block(all, positions, (float*)one + skipped, (float*)space);
    }
}

extern "C" __global__ void normalise(
    const void* x, int format, int positions, int channels, const void* parts, int ranks, int count,
    const void* weight, const void* bias, double epsilon, void* y, void* saved, void* seen)
{
    __shared__ double space[SPACE];
    const size_t skipped = (size_t)blockIdx.z * positions * channels;
    by_format(format, channels, (size_t)x | (size_t)y, [&](auto kind) {
        using K = decltype(kind);
        using T = typename K::T;
        using A = typename K::A;
        const Parts<A> all = {(const A*)parts, ranks, (int)gridDim.z, count, channels};
        normalise_block<K::V>(
            (const T*)x + skipped, positions, all, (const A*)weight, (const A*)bias, epsilon, (T*)y + skipped,
            (A*)saved, (A*)seen, (A*)space);
    });
}

extern "C" __global__ void gradient_sums(
    const void* dy, const void* x, int format, int positions, int channels, const void* saved, void* left)
{
    __shared__ double space[SPACE];
    const size_t skipped = (size_t)blockIdx.z * positions * channels;
    by_format(format, channels, (size_t)dy | (size_t)x, [&](auto kind) {
        using K = decltype(kind);
        using T = typename K::T;
        using A = typename K::A;
        A* part = (A*)left + ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels;
        gradient_sums_of_block<K::V>(
            (const T*)dy + skipped, (const T*)x + skipped, positions, channels, (const A*)saved, part, (A*)space);
    });
}

extern "C" __global__ void gradient(
    const void* dy, const void* x, int format, int positions, int channels, const void* parts, int ranks, int count,
    const void* own, const void* weight, const void* saved, void* dx, void* slopes)
{
    __shared__ double space[SPACE];
    const size_t skipped = (size_t)blockIdx.z * positions * channels;
    by_format(format, channels, (size_t)dy | (size_t)x | (size_t)dx, [&](auto kind) {
        using K = decltype(kind);
        using T = typename K::T;
        using A = typename K::A;
        const Parts<A> all = {(const A*)parts, ranks, (int)gridDim.z, count, channels};
        const Parts<A> here = {(const A*)own, 1, (int)gridDim.z, count, channels};
        gradient_block<K::V>(
            (const T*)dy + skipped, (const T*)x + skipped, positions, all, here, (const A*)weight, (const A*)saved,
            (T*)dx + skipped, (A*)slopes, (A*)space);
    });
}
