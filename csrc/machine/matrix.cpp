// matrix.cpp: mma.sync, ldmatrix, stmatrix, movmatrix
// Operands   Slot i (the instruction itself, then the next slots) has d[i], a[i], b[i], c[i]. There are as many slots as
//            the longest list needs.
// Layout     lane = 4 g + q. A lane holds (g, 2q) (g, 2q + 1) (g + 8, 2q) (g + 8, 2q + 1) of C. For each four terms
//            (eight of 16 bits) it holds term q (terms 2q and 2q + 1) of rows g and g + 8 of A, one register each, and
//            of column g of B.
// Sums       An fp32 fma adds each product, in ascending order of terms, starting with C. So there is one rounding per
//            term; a GPU adds several terms at once with fewer bits. tf32 operands lose their lower 13 bits. fp16
//            results are rounded once.
// ldmatrix   as a load: a = address, imm, c = site; next: d, a, b = second to fourth register, c = flags
#include "functions.h"
#include "memory.h"

namespace machine::alu {
namespace {

using u32 = uint32_t;

// One operand register for all lanes.
struct Row {
    Vec<float, 16> part[2];
};
INLINE Vec<u32, 16> half_of(const uint8_t* r, int32_t at, int half) { return read<u32, 16>(r, at, half); }

enum class Factor { tf32, fp16, bf16 };

// The float in a register (tf32), or the lower or upper one of two (16 bits).
template <Factor factor>
INLINE Row load(const uint8_t* r, int32_t at, bool upper) {
    Row row;
#pragma GCC unroll 4
    for (int half = 0; half < 2; ++half) {
        const auto v = half_of(r, at, half);
        if constexpr (factor == Factor::tf32) row.part[half] = as<float>(v & 0xffffe000);
        if constexpr (factor == Factor::bf16) row.part[half] = as<float>(upper ? v & 0xffff0000 : v << 16);
        if constexpr (factor == Factor::fp16) row.part[half] = Fp16Bits::decode_single(upper ? v >> 16 : v & 0xffff);
    }
    return row;
}
INLINE Row load_float(const uint8_t* r, int32_t at) {
    return {as<float>(half_of(r, at, 0)), as<float>(half_of(r, at, 1))};
}
INLINE void store_float(uint8_t* r, int32_t at, const Row& row) {
#pragma GCC unroll 4
    for (int half = 0; half < 2; ++half) store(r + at, half, canonical(row.part[half]), all_lanes);
}

// The 16 x 8 sums.
#if MACHINE_AVX512
struct Sums {
    __m512 c[4][2];

    INLINE void set(int i, const Row& row) {
#pragma GCC unroll 4
        for (int half = 0; half < 2; ++half) c[i][half] = (__m512)row.part[half];
    }
    INLINE Row get(int i) const { return {(Vec<float, 16>)c[i][0], (Vec<float, 16>)c[i][1]}; }

    // Adds the term that lane q of every four lanes holds. A's element goes to its four lanes. B's even and odd columns
    // come from all lanes and are the same for both halves.
    template <int q>
    INLINE void add(const Row& upper, const Row& lower, const Row& right) {
        const __m512i even = _mm512_setr_epi32(q, q + 8, q + 16, q + 24, q, q + 8, q + 16, q + 24, q, q + 8, q + 16, q + 24,
                                               q, q + 8, q + 16, q + 24);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(4));
        const __m512 b[2] = {_mm512_permutex2var_ps((__m512)right.part[0], even, (__m512)right.part[1]),
                             _mm512_permutex2var_ps((__m512)right.part[0], odd, (__m512)right.part[1])};
#pragma GCC unroll 4
        for (int half = 0; half < 2; ++half) {
            const __m512 a[2] = {_mm512_permute_ps((__m512)upper.part[half], q * 0x55),
                                 _mm512_permute_ps((__m512)lower.part[half], q * 0x55)};
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) c[i][half] = _mm512_fmadd_ps(a[i / 2], b[i % 2], c[i][half]);
        }
    }
};
#else
struct Sums {
    static constexpr int n = vector_bytes == 16 ? 4 : 8;
    using Part = Vec<float, n>;
    Part rows[16][8 / n];

    float& at(int i, int lane) {
        const int column = lane % 4 * 2 + i % 2;
        return reinterpret_cast<float*>(rows[lane / 4 + i / 2 * 8])[column];
    }
    void set(int i, const Row& row) {
        for (int lane = 0; lane < warp_lanes; ++lane) at(i, lane) = row.part[lane / 16][lane % 16];
    }
    Row get(int i) {
        Row row;
        for (int lane = 0; lane < warp_lanes; ++lane) row.part[lane / 16][lane % 16] = at(i, lane);
        return row;
    }
    template <int q>
    void add(const Row& upper, const Row& lower, const Row& right) {
        Part b[8 / n];
        for (int g = 0; g < 8; ++g) b[g / n][g % n] = right.part[g / 4][g % 4 * 4 + q];
        for (int g = 0; g < 8; ++g)
            for (int column = 0; column < 8 / n; ++column) {
                Part &above = rows[g][column], &below = rows[g + 8][column];
                above = fma(all<Part>(upper.part[g / 4][g % 4 * 4 + q]), b[column], above);
                below = fma(all<Part>(lower.part[g / 4][g % 4 * 4 + q]), b[column], below);
            }
    }
};
#endif

// Adds the terms of one register of A's upper rows, one of its lower rows, and one of B.
template <Factor factor>
INLINE void add_registers(Sums& sums, const uint8_t* r, int32_t upper, int32_t lower, const Row& right0, const Row& right1) {
    const Row u0 = load<factor>(r, upper, false), l0 = load<factor>(r, lower, false);
    if constexpr (factor == Factor::tf32) {
        sums.add<0>(u0, l0, right0), sums.add<1>(u0, l0, right0), sums.add<2>(u0, l0, right0),
        sums.add<3>(u0, l0, right0);
    } else {
        const Row u1 = load<factor>(r, upper, true), l1 = load<factor>(r, lower, true);
        sums.add<0>(u0, l0, right0), sums.add<0>(u1, l1, right1), sums.add<1>(u0, l0, right0),
        sums.add<1>(u1, l1, right1);
        sums.add<2>(u0, l0, right0), sums.add<2>(u1, l1, right1), sums.add<3>(u0, l0, right0),
        sums.add<3>(u1, l1, right1);
    }
}

// mma requires all lanes. Reports a fault and returns true if some are missing.
INLINE bool lanes_missing(Warp* w, const Ins* p, uint32_t m) {
    if (__builtin_expect(m == all_lanes, 1)) return false;
    fail(w, p, Fault::missing_lanes, std::countr_one(m));
    return true;
}

// registers: number of registers of B; A has twice as many. half: the sums are fp16, two per register.
template <Factor factor, int registers, bool half>
void mma(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    constexpr int slots = half && registers == 1 ? 2 : 4;  // the length of the longest operand list, C or A
    Sums sums;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums.set(i, half ? load<Factor::fp16>(r, p[i / 2].c, i % 2) : load_float(r, p[i].c));
#pragma GCC unroll 4
    for (int i = 0; i < registers; ++i)
        add_registers<factor>(sums, r, p[2 * i].a, p[2 * i + 1].a, load<factor>(r, p[i].b, false), load<factor>(r, p[i].b, true));
    if constexpr (half) {
#pragma GCC unroll 4
        for (int i = 0; i < 2; ++i)
            for (int group = 0; group < warp_lanes / lanes_at_once<double>; ++group) {
                constexpr int n = lanes_at_once<double>;
                const Row low = sums.get(2 * i), high = sums.get(2 * i + 1);
                const auto of = [&](const Row& row) {
                    return Kind<Half>::encode(convert<double>(reinterpret_cast<const Vec<float, n>*>(&row)[group]));
                };
                write(r + p[i].d, group, Vec<u32, n>(of(low) | of(high) << 16), all_lanes);
            }
    } else {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store_float(r, p[i].d, sums.get(i));
    }
    NEXT_AFTER(slots - 1);
}

// tf32 with B from one register of two bf16: the lower one is b[0], the upper one b[1].
void mma_from_bf16(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    Sums sums;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums.set(i, load_float(r, p[i].c));
    const Row low = load<Factor::bf16>(r, p->b, false), high = load<Factor::bf16>(r, p->b, true);
    add_registers<Factor::tf32>(sums, r, p[0].a, p[1].a, low, low);
    add_registers<Factor::tf32>(sums, r, p[2].a, p[3].a, high, high);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_float(r, p[i].d, sums.get(i));
    NEXT_AFTER(3);
}

// Products of bytes. registers: number of registers of B, each with four terms per lane. Slow and simple.
template <class A, class B, int registers, bool clamp>
void mma_bytes(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    int32_t result[4][warp_lanes];
    for (int i = 0; i < 4; ++i)
        for (int lane = 0; lane < warp_lanes; ++lane) {
            const int row = lane / 4, column = lane % 4 * 2 + i % 2;
            int64_t sum = lanes<int32_t>(r, p[i].c)[lane];
            for (int at = 0; at < registers; ++at) {
                const A* a = reinterpret_cast<const A*>(r + p[2 * at + i / 2].a) + row * 16;
                const B* b = reinterpret_cast<const B*>(r + p[at].b) + column * 16;
                for (int term = 0; term < 16; ++term) sum += int32_t{a[term]} * b[term];
            }
            if (clamp) sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
            result[i][lane] = static_cast<int32_t>(sum);
        }
    for (int i = 0; i < 4; ++i) memcpy(r + p[i].d, result[i], sizeof result[i]);
    NEXT_AFTER(3);
}

// 8 x 8 x 4 in fp64: a and b are one register, c and d two.
void mma_double(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    double result[2][warp_lanes];
    const double *a = reinterpret_cast<double*>(r + p->a), *b = reinterpret_cast<double*>(r + p->b);
    for (int i = 0; i < 2; ++i)
        for (int lane = 0; lane < warp_lanes; ++lane) {
            double sum = reinterpret_cast<double*>(r + p[i].c)[lane];
            for (int term = 0; term < 4; ++term)
                sum = __builtin_fma(a[lane / 4 * 4 + term], b[(lane % 4 * 2 + i) * 4 + term], sum);
            result[i][lane] = sum;
        }
    for (int i = 0; i < 2; ++i)
        for (int lane = 0; lane < warp_lanes; ++lane)
            reinterpret_cast<uint64_t*>(r + p[i].d)[lane] =
                result[i][lane] == result[i][lane] ? std::bit_cast<uint64_t>(result[i][lane]) : 0xfff8'0000'0000'0000;
    NEXT_AFTER(1);
}

// ---- Matrices of 8 x 8 numbers of 16 bits ----
// Lane 4 g + q holds (g, 2q) and (g, 2q + 1). Lane 8 i + j holds the address of row j of matrix i.

using Matrix = uint16_t[8][8];

void transpose(Matrix& matrix) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < i; ++j) std::swap(matrix[i][j], matrix[j][i]);
}

template <Space space, Form form, int count, bool transposed>
void ldmatrix(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    constexpr uint32_t rows = count == 4 ? all_lanes : (1u << 8 * count) - 1;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    const Addresses said = at;
    if (!reach(w, p, rows, at, pattern_of(at, rows, 16), space, 16, reads)) return;
    Matrix matrices[count];
    for (int lane = 0; lane < 8 * count; ++lane) {
        uint16_t* row = matrices[lane / 8][lane % 8];
        if (Watcher* watcher = w->worker->watcher)
            watcher->load(touch_of(w, p, lane, space, said[lane], at[lane], 16), row);
        else
            memcpy(row, reinterpret_cast<const void*>(at[lane]), 16);
    }
    const int32_t to[] = {p->d, p[1].d, p[1].a, p[1].b};
    for (int i = 0; i < count; ++i) {
        if (transposed) transpose(matrices[i]);
        if (to[i] >= 0) memcpy(r + to[i], matrices[i], sizeof(Matrix));
    }
    NEXT_AFTER(1);
}

template <Space space, Form form, int count, bool transposed>
void stmatrix(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    constexpr uint32_t rows = count == 4 ? all_lanes : (1u << 8 * count) - 1;
    Addresses at;
    addresses_of(at, r, p->a, p->imm, form);
    const Addresses said = at;
    if (!reach(w, p, rows, at, pattern_of(at, rows, 16), space, 16, writes)) return;
    const int32_t from[] = {p->d, p[1].d, p[1].a, p[1].b};
    Matrix matrices[count];
    for (int i = 0; i < count; ++i) {
        memcpy(matrices[i], r + from[i], sizeof(Matrix));
        if (transposed) transpose(matrices[i]);
    }
    for (int lane = 0; lane < 8 * count; ++lane) {
        const uint16_t* row = matrices[lane / 8][lane % 8];
        if (Watcher* watcher = w->worker->watcher)
            watcher->store(touch_of(w, p, lane, space, said[lane], at[lane], 16), row);
        else
            memcpy(reinterpret_cast<void*>(at[lane]), row, 16);
    }
    NEXT_AFTER(1);
}

void movmatrix(Warp* w, const Ins* p, uint8_t* r, uint32_t m) {
    if (lanes_missing(w, p, m)) return;
    Matrix matrix;
    memcpy(matrix, r + p->a, sizeof matrix);
    transpose(matrix);
    memcpy(r + p->d, matrix, sizeof matrix);
    NEXT;
}

#define BYTES(shape, registers, a, A, b, B) \
    {"mma." shape ".s32." a "." b ".s32", mma_bytes<A, B, registers, false>}, \
    {"mma." shape ".satfinite.s32." a "." b ".s32", mma_bytes<A, B, registers, true>}
#define ALL_BYTES(shape, registers) \
    BYTES(shape, registers, "s8", int8_t, "s8", int8_t), BYTES(shape, registers, "s8", int8_t, "u8", uint8_t), \
        BYTES(shape, registers, "u8", uint8_t, "s8", int8_t), BYTES(shape, registers, "u8", uint8_t, "u8", uint8_t)
#define MATRICES(op, name, count, space, Space) \
    {name "." space ".b16", op<Space, Form::wide, count, false>}, \
    {name "." space ".a32.b16", op<Space, Form::narrow, count, false>}, \
        {name ".trans." space ".b16", op<Space, Form::wide, count, true>}, \
        {name ".trans." space ".a32.b16", op<Space, Form::narrow, count, true>}
#define ALL_MATRICES(op, name) \
    MATRICES(op, name ".m8n8.x1", 1, "shared", shared), MATRICES(op, name ".m8n8.x1", 1, "gen", generic), \
    MATRICES(op, name ".m8n8.x2", 2, "shared", shared), \
        MATRICES(op, name ".m8n8.x2", 2, "gen", generic), MATRICES(op, name ".m8n8.x4", 4, "shared", shared), \
        MATRICES(op, name ".m8n8.x4", 4, "gen", generic)

REGISTER(matrix,
    {"mma.m16n8k4.f32.tf32.tf32.f32", mma<Factor::tf32, 1, false>},
    {"mma.m16n8k8.f32.tf32.tf32.f32", mma<Factor::tf32, 2, false>},
    {"mma.m16n8k8.f32.bf16.bf16.f32", mma<Factor::bf16, 1, false>},
    {"mma.m16n8k16.f32.bf16.bf16.f32", mma<Factor::bf16, 2, false>},
    {"mma.m16n8k8.f32.f16.f16.f32", mma<Factor::fp16, 1, false>},
    {"mma.m16n8k16.f32.f16.f16.f32", mma<Factor::fp16, 2, false>},
    {"mma.m16n8k8.f16.f16.f16.f16", mma<Factor::fp16, 1, true>},
    {"mma.m16n8k16.f16.f16.f16.f16", mma<Factor::fp16, 2, true>},
    {"fused.bf16.mma.m16n8k8.f32.tf32.tf32.f32", mma_from_bf16}, {"mma.m8n8k4.f64.f64.f64.f64", mma_double},
    ALL_BYTES("m16n8k16", 1), ALL_BYTES("m16n8k32", 2), ALL_MATRICES(ldmatrix, "ldmatrix"),
    ALL_MATRICES(stmatrix, "stmatrix"),
    {"movmatrix.trans.m8n8.b16", movmatrix});

}  // namespace
}  // namespace machine::alu
