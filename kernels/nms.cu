// Greedy non-maximum suppression that stops at k boxes: k rounds of "take the best, drop what overlaps it". For the few
// boxes an image needs this beats sorting all of them or filling an n * n mask.

constexpr int NMS_THREADS = 256;  // of a block; a power of two

// Whether intersection over union lies above the threshold. Areas are exact integers and the one product is rounded as
// IEEE 754 says, so NumPy, torch and this agree on every pair.
__device__ bool overlaps(const int* a, const int* b, double threshold)
{
    const long long width = min(a[2], b[2]) - max(a[0], b[0]), height = min(a[3], b[3]) - max(a[1], b[1]);
    if (width <= 0 || height <= 0)
        return false;
    const long long both = width * height;
    const long long either =
        (long long)(a[2] - a[0]) * (a[3] - a[1]) + (long long)(b[2] - b[0]) * (b[3] - b[1]) - both;
    return (double)both > threshold * (double)either;
}

// grid (images), block NMS_THREADS.
//   left         (images, n): scores, -1 where there is no candidate; what is taken or suppressed becomes -1
//   boxes        (images, n, 4): x0, y0, x1, y1, half-open
//   keep         (images, k): the boxes taken, best first, written as far as there are any
//   kept_scores  (images, k): their scores, likewise
extern "C" __global__ void nms_topk(
    float* left, const int* boxes, int n, int k, double threshold, long long* keep, float* kept_scores)
{
    __shared__ float best_score[NMS_THREADS];
    __shared__ int best_box[NMS_THREADS];
    const int thread = threadIdx.x;
    left += (size_t)blockIdx.x * n;
    boxes += (size_t)blockIdx.x * n * 4;
    keep += (size_t)blockIdx.x * k;
    kept_scores += (size_t)blockIdx.x * k;

    int taken = -1;
    for (int round = 0; round < k; ++round) {
        // A thread reads and drops its own candidates only, so `left` needs no barrier.
        float score = -1.0f;
        int box = n;
        for (int i = thread; i < n; i += NMS_THREADS) {
            if (left[i] < 0.0f)
                continue;
            if (taken >= 0 && (i == taken || overlaps(boxes + 4 * (size_t)taken, boxes + 4 * (size_t)i, threshold)))
                left[i] = -1.0f;
            else if (left[i] > score) {
                score = left[i];
                box = i;
            }
        }
        best_score[thread] = score;
        best_box[thread] = box;
        __syncthreads();
        for (int half = NMS_THREADS / 2; half > 0; half /= 2) {
            if (thread < half) {
                const float other = best_score[thread + half];
                const int its_box = best_box[thread + half];
                // Of equal scores the lowest index wins.
                if (other > best_score[thread] || (other == best_score[thread] && its_box < best_box[thread])) {
                    best_score[thread] = other;
                    best_box[thread] = its_box;
                }
            }
            __syncthreads();
        }
        taken = best_box[0];
        if (taken == n)
            return;  // no candidate is left: every thread reads the same and leaves
        if (thread == 0) {
            keep[round] = taken;
            kept_scores[round] = best_score[0];
        }
        __syncthreads();  // all have read the best before the next round writes
    }
}
