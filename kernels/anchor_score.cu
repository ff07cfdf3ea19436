// The mean of an upsampled score map inside every anchor (Coarse Is Better, section 3.3), without the upsampled map.
//
// Bilinear upsampling and the mean over a box both work on one axis at a time, so the score is a mean over the box's
// columns followed by a mean over its rows. Along an axis the upsampled map is linear between two cell centres, and the
// mean of a linear function is its value in the middle: a box costs a step for every cell it crosses, not for every
// pixel. Which pixels lie between which centres is integer arithmetic, hence exact.

// Sum over pixels begin..end-1 of `cells` values, `stride` apart, upsampled to `pixels` with half-pixel centres: pixel
// p lies at (p + 1/2) * cells / pixels - 1/2 in units of cells; the outermost values go on to the borders.
// Requires 0 <= begin < end <= pixels and pixels * cells < 2^29.
__device__ float interval_sum(const float* values, int stride, int cells, int pixels, int begin, int end)
{
    float sum = 0.0f;
    int right = ((2 * begin + 1) * cells + pixels) / (2 * pixels);  // the first cell centre right of pixel `begin`
    while (begin < end) {
        int until = end;
        if (right < cells)  // the first pixel at or right of that centre
            until = min(end, ((2 * right + 1) * pixels + cells - 1) / (2 * cells));
        const float a = values[max(right - 1, 0) * stride];
        const float b = values[min(right, cells - 1) * stride];
        // The middle of begin..until, from a's centre, in units of 1 / (2 * pixels) of a cell.
        const int middle = (begin + until) * cells + pixels - 2 * pixels * right;
        sum += (until - begin) * (a + (b - a) * ((float)middle / (float)(2 * pixels)));
        begin = until;
        ++right;
    }
    return sum;
}

// grid (images, shapes), any block; dynamic shared memory: height * width floats.
//   maps    (images, height, width)
//   sizes   (images, 2): width and height of the image in pixels
//   boxes   (images, shapes, height, width, 4): x0, y0, x1, y1 in pixels, half-open, inside the image, not empty;
//           within a shape x0 and x1 depend on the column alone, y0 and y1 on the row alone
//   scores  (images, shapes, height, width), written
extern "C" __global__ void score_anchors(
    const float* maps, const int* sizes, const int* boxes, int height, int width, float* scores)
{
    extern __shared__ float column_means[];  // (height, width): at (i, j) the mean of row i from x0 to x1 of column j
    const int image = blockIdx.x, shape = blockIdx.y, cells = height * width;
    const float* map = maps + (size_t)image * cells;
    const size_t first = ((size_t)image * gridDim.y + shape) * cells;

    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const int* box = boxes + 4 * (first + cell);
        const float* row = map + cell / width * width;
        column_means[cell] = interval_sum(row, 1, width, sizes[2 * image], box[0], box[2]) / (box[2] - box[0]);
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const int* box = boxes + 4 * (first + cell);
        const float* column = column_means + cell % width;
        scores[first + cell] =
            interval_sum(column, width, height, sizes[2 * image + 1], box[1], box[3]) / (box[3] - box[1]);
    }
}
