"""A plain, right kernel for every spec: its body, and the order of parameters for a whole kernel."""

ADD = """\
const int i = blockIdx.x * blockDim.x + threadIdx.x;
if (i < n) y[i] = x[i] + r[i];
"""

SUM = """\
__shared__ float scratch[block_warps];
float sum = 0.0f;
for (int i = threadIdx.x; i < n; i += block_threads) sum += x[i];
sum = block_sum(sum, scratch);
if (threadIdx.x == 0) y[0] = sum;
"""

RMS_NORM = """\
__shared__ float scratch[block_warps];
const float* row = x + blockIdx.x * n;
float squares = 0.0f;
for (int c = threadIdx.x; c < n; c += block_threads) squares += row[c] * row[c];
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
for (int c = threadIdx.x; c < n; c += block_threads) y[blockIdx.x * n + c] = row[c] * scale * (1.0f + weight[c]);
"""

ADD_RMS_NORM = """\
__shared__ float scratch[block_warps];
const int first = blockIdx.x * n;
float squares = 0.0f;
for (int c = threadIdx.x; c < n; c += block_threads) {
    const float sum = x[first + c] + r[first + c];
    mid[first + c] = sum;
    squares += sum * sum;
}
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
for (int c = threadIdx.x; c < n; c += block_threads) y[first + c] = mid[first + c] * scale * (1.0f + weight[c]);
"""

LINEAR = """\
const int row = blockIdx.x * blockDim.x + threadIdx.x;
if (row >= rows) return;
float sum = 0.0f;
for (int c = 0; c < cols; ++c) sum += to_float(W[row * cols + c]) * x[c];
y[row] = sum;
"""

CAUSAL_CONV = """\
const int channel = blockIdx.x * blockDim.x + threadIdx.x;
if (channel >= channels) return;
float* state = conv_state + channel * (taps - 1);
float sum = x[channel] * weight[channel * taps + taps - 1];
for (int tap = 0; tap < taps - 1; ++tap) sum += state[tap] * weight[channel * taps + tap];
for (int tap = 0; tap < taps - 2; ++tap) state[tap] = state[tap + 1];
state[taps - 2] = x[channel];
y[channel] = sum / (1.0f + expf(-sum));
"""

DELTA_RULE = """\
const int head = blockIdx.x, j = threadIdx.x;
if (j >= V) return;
float* column = S + head * K * V + j;
const float decay = expf(g[head]);
float S_k = 0.0f, S_q = 0.0f;
for (int i = 0; i < K; ++i) S_k += decay * column[i * V] * k[head * K + i];
const float delta = beta[head] * (v[head * V + j] - S_k);
for (int i = 0; i < K; ++i) {
    const float updated = decay * column[i * V] + delta * k[head * K + i];
    column[i * V] = updated;
    S_q += updated * q[head * K + i];
}
o[head * V + j] = S_q;
"""

ATTENTION = """\
const int head = blockIdx.x, d = threadIdx.x;
if (d >= head_dim) return;
const float* query = q + head * head_dim;
float largest = -INFINITY, total = 0.0f, sum = 0.0f;
for (int p = 0; p < positions; ++p) {
    float score = 0.0f;
    for (int c = 0; c < head_dim; ++c) score += query[c] * k[(head * positions + p) * head_dim + c];
    score *= rsqrtf(static_cast<float>(head_dim));
    const float larger = fmaxf(largest, score), old = expf(largest - larger), weight = expf(score - larger);
    total = total * old + weight;
    sum = sum * old + weight * v[(head * positions + p) * head_dim + d];
    largest = larger;
}
o[head * head_dim + d] = sum / total;
"""

# spec: its body, and its parameters in an order other than the spec's, without those that the body does not use
RIGHT = {
    "torch.add": (ADD, "n y r x"),
    "torch.sum": (SUM, "y n x"),
    "reference.rms_norm": (RMS_NORM, "eps n y weight x"),
    "uniform.rms_norm": (RMS_NORM, "n x y eps weight"),
    "torch.add+reference.rms_norm": (ADD_RMS_NORM, "mid y x r weight n eps"),
    "F.linear": (LINEAR, "cols y rows x W"),
    "reference.causal_conv": (CAUSAL_CONV, "conv_state weight taps channels y x"),
    "reference.delta_rule_step": (DELTA_RULE, "o S K V g beta q k v"),
    "F.scaled_dot_product_attention": (ATTENTION, "q k v o head_dim positions"),
}


def whole(name: str, spec, body: str, order: str | None = None) -> str:
    """The body as a whole kernel, with its parameters in `order`, or in the order of the spec."""
    names = order.split() if order else list(spec.parameters)
    parameters = ", ".join(f"{spec.parameters[parameter]} {parameter}" for parameter in names)
    return f"__global__ void {name}({parameters}) {{\n{body}}}\n"
