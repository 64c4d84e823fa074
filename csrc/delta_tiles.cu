// delta_tiles.cu: the delta rule with tiles of other sizes, for notebook 10 (luce_edu/measure/tiles.py)
// Computes  what delta_rule_phase of phases.cuh does, with q and k of every value head given
// Shapes    q, k [value heads, K], not normalised  v, o [value heads, V]  beta, g [value heads]  S [value heads, K, V]
// Macros    BLOCK_THREADS and TILE_COLUMNS decide how many rows a thread has; BLOCKS_PER_SM tells the compiler how many
//           blocks must fit on an SM, which limits the registers
// Checked   tests/measure/test_tiles.py
#include "delta_rule.cuh"

extern "C" __global__ void __launch_bounds__(block_threads, BLOCKS_PER_SM)
delta_rule(const float* q, const float* k, const float* v, const float* beta, const float* g, float* S, float* o) {
    __shared__ DeltaRuleShared shared;
    for (int unit = blockIdx.x; unit < num_value_heads * tiles_per_head; unit += gridDim.x) {
        const int head = unit / tiles_per_head, column = unit % tiles_per_head * tile_columns;
        const int row = head * key_head_dim, at = head * value_head_dim + column;
        float4 tile[rows_per_thread];
        load_state_tile(S + row * value_head_dim + column, tile);
        delta_rule_tile(q + row, k + row, v + at, beta[head], g[head], tile, S + row * value_head_dim + column,
                        &shared, [first = o + at](int own, float value) { first[own] = value; });
        __syncthreads();  // the next tile reuses the shared memory
    }
}
