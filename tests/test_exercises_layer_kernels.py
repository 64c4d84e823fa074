"""The checkers of notebook 06 accept right kernels in several forms, and refuse wrong ones with a reason."""

from functools import partial

from answers import changed, checker_tests

from luce_edu.exercises import layer_kernels as exercises

# ---- the delta update

UPDATE = """
const float decay = expf(g[head]);
const float delta = beta[head] * (v[head * V + j] - decay * S_k);
for (int i = 0; i < K; ++i) column[i * V] = decay * column[i * V] + k_head[i] * delta;
o[head * V + j] = decay * S_q + delta * k_q;
"""
NEW_STATE = """
float delta = v[head * V + j] - expf(g[head]) * S_k;
delta *= beta[head];
float read = 0.0f;
for (int i = K - 1; i >= 0; --i) {
    column[i * V] = fmaf(k_head[i], delta, expf(g[head]) * column[i * V]);
    read = fmaf(column[i * V], q_head[i], read);
}
o[head * V + j] = read;
"""


update = partial(changed, UPDATE)
WRONG_UPDATE = {
    "decay left out of S^T k": (update("decay * S_k", "S_k"), "o\\[.*delta uses S\\^T k without the decay"),
    "decay left out of S^T q": (update("decay * S_q", "S_q"), "o uses S\\^T q without the decay"),
    "o read before the update": (update(" + delta * k_q", ""), "from the state before the update"),
    "the state does not decay": (update("decay * column", "column"), "old state is in the new one"),
    "g in place of exp(g)": (update("expf(g[head])", "g[head]"), "the factor is exp\\(g\\)"),
    "the decay in neither sum": (UPDATE.replace("decay * S_", "S_"), "Both sums lack the decay"),
    "the decay nowhere": (UPDATE.replace("decay * ", ""), "The decay is missing everywhere"),
    "a row for each thread": (UPDATE.replace("column[i * V]", "column[i]"), "race on S|out of bounds"),
    "beta forgotten": (update("beta[head] * ", ""), "delta is not scaled by beta"),
    "beta on v only": (update("(v[head * V + j] - decay * S_k)", "v[head * V + j] - decay * S_k"), "scales v only"),
    "delta turned round": (update("beta[head] * (", "-beta[head] * ("), "wrong sign"),
    # Equal heads would hide this fault.
    "the values of head 0 for every head": (update("v[head * V + j]", "v[j]"), "heads 3.*elements are wrong"),
    "a row too far": (update("i < K", "i <= K"), "out of bounds"),
    "the last row left as it was": (update("i < K", "i < K - 1"), "S\\["),
    "o never written": (update("o[head * V + j] = ", "const float unused = "), "o\\[0, 0\\]"),
}


def filled(exercise, text: str) -> str:
    """The reader's cell with `text` in the hole."""
    return exercise.skeleton.replace(exercise.hole, text.strip("\n"))


DECAY_FIRST = """
const float decay = expf(g[head]);
for (int i = 0; i < K; ++i) column[i * V] *= decay;
const float delta = (v[head * V + j] - decay * S_k) * beta[head];
for (int i = 0; i < K; ++i) column[i * V] += k_head[i] * delta;
o[head * V + j] = S_q * decay + k_q * delta;
"""
LATE_BETA = """
const float b = beta[head], error = fmaf(-expf(g[head]), S_k, v[head * V + j]);
o[head * V + j] = expf(g[head]) * S_q + b * error * k_q;
float* end = column + K * V;
for (float* s = column; s < end; s += V, ++k_head) *s = *s * expf(g[head]) + b * *k_head * error;
"""
UPDATES = {  # text, how often S is read and written
    "by the identity": (UPDATE, "twice and written once"),
    "from the new state": (NEW_STATE, "twice and written once"),
    "the decay in a walk of its own": (DECAY_FIRST, "3 times and written twice"),
    "beta at the end, by pointers": (LATE_BETA, "twice and written once"),
}


# ---- four softmaxes become one

MERGE = """
__syncthreads();
float top = -INFINITY, sum = 0.0f, total = 0.0f;
for (int i = 0; i < 4; ++i) top = fmaxf(top, maxima[i]);
for (int i = 0; i < 4; ++i) sum += sums[i][c] * expf(maxima[i] - top), total += weights[i] * expf(maxima[i] - top);
if (c < head_dim) o[head * head_dim + c] = sum / total;
"""
RUNNING = """
__syncthreads();
if (c >= head_dim) return;
float m = maxima[0], W = weights[0], s = sums[0][c];
for (int i = 1; i < 4; ++i) {
    const float larger = maxima[i] > m ? maxima[i] : m;
    W = W * expf(m - larger) + weights[i] * expf(maxima[i] - larger);
    s = s * expf(m - larger) + sums[i][c] * expf(maxima[i] - larger);
    m = larger;
}
o[head * head_dim + c] = s / W;
"""
FIRST_WARP = """
__syncthreads();
if (w > 0) return;
float top = fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3])), total = 0.0f, scale[4];
for (int i = 0; i < 4; ++i) scale[i] = expf(maxima[i] - top), total += scale[i] * weights[i];
for (int e = lane; e < head_dim; e += 32)
    o[head * head_dim + e] =
        (scale[0] * sums[0][e] + scale[1] * sums[1][e] + scale[2] * sums[2][e] + scale[3] * sums[3][e]) / total;
"""


IN_THE_IF = """
if (c < head_dim) {
    __syncthreads();
    float top = fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3])), over = 0.0f, under = 0.0f;
    for (int i = 3; i >= 0; --i) {
        if (maxima[i] == -INFINITY) continue;
        under += weights[i] * expf(maxima[i] - top), over += sums[i][c] * expf(maxima[i] - top);
    }
    o[head * head_dim + c] = over / under;
}
"""
MERGES = {  # text, the remark: barriers per block, or the course's rule where a barrier is in an if
    "at once": (MERGE, "block: 1."),
    "one after the other": (RUNNING, "block: 1."),
    "one warp": (FIRST_WARP, "block: 1."),
    "the barrier in the if": (IN_THE_IF, "The rule of this course"),
    "in double precision": (MERGE.replace("float top = -INFINITY, sum", "double top = -INFINITY, sum")
                            .replace("fmaxf(top, ", "fmax(top, (double)").replace("expf(", "exp("), "block: 1."),
}  # fmt: skip


merge = partial(changed, MERGE)
WRONG_MERGE = {
    "no barrier": (merge("__syncthreads();", ""), "only after a barrier"),
    "weights not rescaled": (merge("weights[i] * expf(maxima[i] - top)", "weights[i]"), "The weights are added"),
    "sums not rescaled": (merge("sums[i][c] * expf(maxima[i] - top)", "sums[i][c]"), "The sums are added"),
    "neither rescaled": (MERGE.replace(" * expf(maxima[i] - top)", ""), "Weights and sums are added"),
    "one warp's": (merge("sum / total", "sums[0][c] / weights[0]"), "softmax of warp 0"),
    "a maximum of at least 0": (merge("top = -INFINITY", "top = 0.0f"), "heads 2.*o\\[1, 0\\]"),
    "the last warp left out": (merge("i = 0; i < 4; ++i) sum", "i = 0; i < 3; ++i) sum"), "positions of warp 3"),
    "not divided by the weight": (merge(" / total", ""), "not divided by the weights"),
    "every head writes to head 0": (merge("o[head * head_dim + c]", "o[c]"), "heads 2.*race on o"),
    "an element too many": (merge("c < head_dim", "c <= head_dim"), "out of bounds"),
    "a barrier that half the block skips": (
        merge("__syncthreads();", "if (w < 2) __syncthreads();"), "divergent|elements are wrong|only after a barrier"),
}  # fmt: skip


# ---- one walk

WALK = """
float own_k = 0.0f, own_q = 0.0f, k_q = 0.0f;
for (int i = 0; i < 32; ++i) {
    const int row = part + 4 * i;
    s[i] = row < K && j < V ? column[row * V] : 0.0f;
    if (row < K) own_k += s[i] * k_head[row], own_q += s[i] * q_head[row];
}
for (int i = 0; i < K; ++i) k_q += k_head[i] * q_head[i];
S_k[part][j] = own_k, S_q[part][j] = own_q;
__syncthreads();
if (j >= V) return;
const float decay = expf(g[head]);
const float delta = beta[head] * (v[head * V + j] - decay * (S_k[0][j] + S_k[1][j] + S_k[2][j] + S_k[3][j]));
if (part == 0) o[head * V + j] = decay * (S_q[0][j] + S_q[1][j] + S_q[2][j] + S_q[3][j]) + delta * k_q;
for (int i = 0; i < 32; ++i)
    if (part + 4 * i < K) column[(part + 4 * i) * V] = decay * s[i] + k_head[part + 4 * i] * delta;
"""
# The sum over the new state needs a second barrier, but the state is still read once.
TWO_SUMS = """
const float decay = expf(g[head]);
float sum = 0.0f;
for (int i = 0; i < 32; ++i) {
    s[i] = 0.0f;
    if (part + 4 * i < K && j < V) s[i] = decay * column[(part + 4 * i) * V], sum += s[i] * k_head[part + 4 * i];
}
S_k[part][j] = sum;
__syncthreads();
const float value = j < V ? v[head * V + j] : 0.0f;
const float delta = beta[head] * (value - S_k[0][j] - S_k[1][j] - S_k[2][j] - S_k[3][j]);
sum = 0.0f;
for (int i = 0; i < 32; ++i)
    if (part + 4 * i < K) s[i] += k_head[part + 4 * i] * delta, sum += s[i] * q_head[part + 4 * i];
S_q[part][j] = sum;
__syncthreads();
if (j >= V) return;
for (int i = 0; i < 32; ++i) if (part + 4 * i < K) column[(part + 4 * i) * V] = s[i];
if (part == 3) o[head * V + j] = S_q[0][j] + S_q[1][j] + S_q[2][j] + S_q[3][j];
"""
WHOLE_COLUMN = """
if (part > 0 || j >= V) return;
float all[128], sum_k = 0.0f, sum_q = 0.0f, k_q = 0.0f;
#pragma unroll
for (int i = 0; i < 128; ++i) all[i] = i < K ? column[i * V] : 0.0f;
#pragma unroll
for (int i = 0; i < 128; ++i)
    if (i < K) sum_k += all[i] * k_head[i], sum_q += all[i] * q_head[i], k_q += k_head[i] * q_head[i];
const float decay = expf(g[head]);
const float delta = beta[head] * (v[head * V + j] - decay * sum_k);
#pragma unroll
for (int i = 0; i < 128; ++i) if (i < K) column[i * V] = decay * all[i] + k_head[i] * delta;
o[head * V + j] = decay * sum_q + delta * k_q;
"""


walk = partial(changed, WALK)
WRONG_WALK = {
    "S read a second time": (walk("decay * s[i]", "decay * column[(part + 4 * i) * V]"), "S is read twice"),
    "a column in one thread": (
        WHOLE_COLUMN, "into memory instead of registers.* at most 128 registers in a block of 512"),
    "an index unknown to the compiler": (
        walk("for (int i = 0; i < 32; ++i)\n    if", "#pragma unroll 1\nfor (int i = 0; i < 32; ++i)\n    if"),
        "into memory instead of registers"),
    "no barrier": (walk("__syncthreads();", ""), "race on|uninitialised"),
    "decay left out of S^T k": (walk("decay * (S_k", "(S_k"), "delta uses S\\^T k without the decay"),
    "o read before the update": (walk(" + delta * k_q", ""), "from the state before the update"),
    "rows beyond K read": (walk("row < K && ", ""), "out of bounds"),
    "only the first 124 rows": (
        walk("i < 32; ++i)\n    if", "i < 31; ++i)\n    if"), "S\\["),
}  # fmt: skip


EXIT_FIRST = walk("__syncthreads();\nif (j >= V) return;", "if (j >= V) return;\n__syncthreads();")
# A whole kernel. A thread has 32 rows in sequence, and columns in a warp are 8 apart, so loads do not coalesce.
RUNS = """
__global__ void one_walk(const float* q, const float* k, const float* v, const float* beta, const float* g, float* S,
                         float* o, int K, int V) {
    __shared__ float S_k[128][4], S_q[128][4];
    const int head = blockIdx.x, j = threadIdx.x / 4 % 16 * 8 + threadIdx.x / 64;
    const int part = threadIdx.x % 4, first = 32 * part;
    float s[32], own_k = 0.0f, own_q = 0.0f, k_q = 0.0f;
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        s[i] = first + i < K && j < V ? S[(head * K + first + i) * V + j] : 0.0f;
        if (first + i < K) own_k += s[i] * k[head * K + first + i], own_q += s[i] * q[head * K + first + i];
    }
    for (int i = 0; i < K; ++i) k_q += k[head * K + i] * q[head * K + i];
    S_k[j][part] = own_k, S_q[j][part] = own_q;
    __syncthreads();
    if (j >= V) return;
    const float decay = expf(g[head]), sum_k = S_k[j][0] + S_k[j][1] + S_k[j][2] + S_k[j][3];
    const float delta = beta[head] * (v[head * V + j] - decay * sum_k);
    if (part == 0) o[head * V + j] = decay * (S_q[j][0] + S_q[j][1] + S_q[j][2] + S_q[j][3]) + delta * k_q;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        if (first + i < K) S[(head * K + first + i) * V + j] = decay * s[i] + k[head * K + first + i] * delta;
}
"""
WALKS = {  # text, remark
    "one sum": (WALK, ""),
    "two sums": (TWO_SUMS, ""),
    "threads without a column leave early": (EXIT_FIRST, "The rule of this course"),
    "runs of rows, without neighbours": (RUNS, "Neighbouring threads do not read"),
}


def cells(exercise, texts):
    """The texts in the exercise's hole, with the pattern of the verdict; a whole kernel is used as it is."""
    return {
        name: (text if "__global__" in text else filled(exercise, text), said) for name, (text, said) in texts.items()
    }


test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(*(
    (exercise, cells(exercise, right), cells(exercise, wrong))
    for exercise, right, wrong in (
        (exercises.delta_update, UPDATES, WRONG_UPDATE), (exercises.merge_softmax, MERGES, WRONG_MERGE),
        (exercises.one_walk, WALKS, WRONG_WALK),
    )
))  # fmt: skip


def test_a_remark_is_made_only_where_it_fits(capsys):
    exercises.one_walk.check(filled(exercises.one_walk, WALK))
    exercises.merge_softmax.check(filled(exercises.merge_softmax, MERGE))
    said = capsys.readouterr().out
    assert "S is read once and written once" in said
    assert "The rule of this course" not in said and "Neighbouring threads" not in said
