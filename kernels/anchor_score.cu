// The mean of an upsampled score map inside every anchor (Coarse Is Better, section 3.3), without the upsampled map.
//
// Bilinear upsampling and the mean over a box both work on one axis at a time, so the score is a mean over the box's
// columns followed by a mean over its rows. Along an axis the upsampled map is linear between two cell centres, and the
// mean of a linear function is its value in the middle: a box costs a step for every cell it crosses, not for every
// pixel. Which pixels lie between which centres is integer arithmetic, hence exact.

//
// Scores decide an order, so they are exact: map values are multiples of 1 / GRID, and every sum is a whole number that
// double holds without rounding. The same map gives the same scores here and on every processor.

constexpr double GRID = 16777216.0;

// The mean over pixels begin..end-1 of `cells` values, `stride` apart, times `unit` rounded to whole numbers and
// upsampled to `pixels` with half-pixel centres: pixel p lies at (p + 1/2) * cells / pixels - 1/2 in units of cells; the
// outermost values go on to the borders.
// Requires 0 <= begin < end <= pixels <= 2^14, pixels * cells < 2^29 and values times `unit` of at most GRID.
template <typename Value>
__device__ double interval_mean(
    const Value* values, double unit, int stride, int cells, int pixels, int begin, int end)
{
    const double pixel_count = end - begin;
    double sum = 0.0;
    int right = ((2 * begin + 1) * cells + pixels) / (2 * pixels);  // the first cell centre right of pixel `begin`
    while (begin < end) {
        int until = end;
        if (right < cells)  // the first pixel at or right of that centre
            until = min(end, ((2 * right + 1) * pixels + cells - 1) / (2 * cells));
        const double a = rint(values[max(right - 1, 0) * stride] * unit);
        const double b = rint(values[min(right, cells - 1) * stride] * unit);
        // The middle of begin..until, from a's centre, in units of 1 / (2 * pixels) of a cell.
        const int middle = (begin + until) * cells + pixels - 2 * pixels * right;
        sum += (until - begin) * (2.0 * pixels * a + (b - a) * middle);
        begin = until;
        ++right;
    }
    return sum / (2.0 * pixels * pixel_count);
}

// grid (images, shapes), any block; dynamic shared memory: height * width doubles.
//   maps    (images, height, width), 0..1
//   sizes   (images, 2): width and height of the image in pixels
//   boxes   (images, shapes, height, width, 4): x0, y0, x1, y1 in pixels, half-open, inside the image, not empty;
//           within a shape x0 and x1 depend on the column alone, y0 and y1 on the row alone
//   scores  (images, shapes, height, width), written
extern "C" __global__ void score_anchors(
    const float* maps, const int* sizes, const int* boxes, int height, int width, float* scores)
{
    extern __shared__ double column_means[];  // (height, width): at (i, j) the mean of row i from x0 to x1 of column j
    const int image = blockIdx.x, shape = blockIdx.y, cells = height * width;
    const float* map = maps + (size_t)image * cells;
    const size_t first = ((size_t)image * gridDim.y + shape) * cells;

    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const int* box = boxes + 4 * (first + cell);
        const float* row = map + cell / width * width;
        column_means[cell] = rint(interval_mean(row, GRID, 1, width, sizes[2 * image], box[0], box[2]));
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const int* box = boxes + 4 * (first + cell);
        const double* column = column_means + cell % width;
        const double mean = interval_mean(column, 1.0, width, height, sizes[2 * image + 1], box[1], box[3]);
        scores[first + cell] = (float)(mean / GRID);
    }
}
