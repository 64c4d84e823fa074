// alu_float.cpp: fp32 and fp64
#include "functions.h"

namespace machine::alu {
namespace {

using Ftz = Float<float, true>;
using Sat = Float<float, false, true>;
using FtzSat = Float<float, true, true>;

constexpr auto add = [](auto a, auto b) { return a + b; };
constexpr auto sub = [](auto a, auto b) { return a - b; };
constexpr auto mul = [](auto a, auto b) { return a * b; };
constexpr auto multiply_add = [](auto a, auto b, auto c) { return fma(a, b, c); };
constexpr auto divide = [](auto a, auto b) { return a / b; };
constexpr auto reciprocal = [](auto a) { return all<decltype(a)>(1) / a; };
constexpr auto root = [](auto a) { return square_root(a); };

// ---- Rounding towards zero, down, up: with AVX-512 the instruction names the mode, else the CPU's mode is set ----

#if MACHINE_AVX512
constexpr int rule_of[] = {_MM_FROUND_TO_NEAREST_INT, _MM_FROUND_TO_ZERO, _MM_FROUND_TO_NEG_INF, _MM_FROUND_TO_POS_INF};
#define RULE (rule_of[mode] | _MM_FROUND_NO_EXC)
#define BY_INSTRUCTION(instruction, PS, PD) \
    using V = decltype(a); \
    if constexpr (sizeof(V) == 64 && sizeof(Element<V>) == 4) return (V)_mm512_##instruction##_round_ps(PS, RULE); \
    if constexpr (sizeof(V) == 64 && sizeof(Element<V>) == 8) return (V)_mm512_##instruction##_round_pd(PD, RULE);
#else
#define BY_INSTRUCTION(instruction, PS, PD)
#endif
#define PS(x) (__m512)x
#define PD(x) (__m512d)x
#define COMMA ,
#define DEFINE_RULED(name, instruction, plain) \
    template <Rounding mode> \
    constexpr auto name = [](auto a, auto b) { \
        BY_INSTRUCTION(instruction, PS(a) COMMA PS(b), PD(a) COMMA PD(b)) \
        return while_rounding<mode>(plain, a, b); \
    };
DEFINE_RULED(add_by, add, add)
DEFINE_RULED(sub_by, sub, sub)
DEFINE_RULED(mul_by, mul, mul)
DEFINE_RULED(div_by, div, divide)
template <Rounding mode>
constexpr auto fma_by = [](auto a, auto b, auto c) {
    BY_INSTRUCTION(fmadd, PS(a) COMMA PS(b) COMMA PS(c), PD(a) COMMA PD(b) COMMA PD(c))
    return while_rounding<mode>(multiply_add, a, b, c);
};
template <Rounding mode>
constexpr auto sqrt_by = [](auto a) {
    BY_INSTRUCTION(sqrt, PS(a), PD(a))
    return while_rounding<mode>(root, a);
};
template <Rounding mode>
constexpr auto rcp_by = [](auto a) { return div_by<mode>(all<decltype(a)>(1), a); };

// ---- Signs and classes ----

constexpr auto negate = [](auto a) { return minus(a); };
constexpr auto absolute = [](auto a) { return magnitude(a); };
constexpr auto copy_sign = [](auto a, auto b) { return with_sign_of(b, a); };

constexpr auto is_finite = [](auto a) { return magnitude(a) < all<decltype(a)>(__builtin_inf()); };
constexpr auto is_infinite = [](auto a) { return magnitude(a) == all<decltype(a)>(__builtin_inf()); };
constexpr auto is_number = [](auto a) { return a == a; };
constexpr auto is_nan = [](auto a) { return a != a; };
constexpr auto is_subnormal = [](auto a) {  // a zero counts as normal
    return (magnitude(a) < all<decltype(a)>(sizeof(a[0]) == 4 ? 0x1p-126 : 0x1p-1022)) & (a != all<decltype(a)>(0));
};
constexpr auto is_normal = [](auto a) { return is_finite(a) & ~is_subnormal(a); };

#define TWO_OPERANDS(name, f) \
    BINARY(name ".f32", f, Real(Real, Real)), BINARY(name ".ftz.f32", f, Ftz(Ftz, Ftz)), \
    ENTRY(name ".sat.f32", f, Sat(Sat, Sat)), \
        ENTRY(name ".ftz.sat.f32", f, FtzSat(FtzSat, FtzSat)), BINARY(name ".f64", f, Real64(Real64, Real64))
#define THREE_OPERANDS(name, f) \
    TERNARY(name ".f32", f, Real(Real, Real, Real)), ENTRY(name ".ftz.f32", f, Ftz(Ftz, Ftz, Ftz)), \
    ENTRY(name ".sat.f32", f, Sat(Sat, Sat, Sat)), \
        ENTRY(name ".ftz.sat.f32", f, FtzSat(FtzSat, FtzSat, FtzSat)), \
        TERNARY(name ".f64", f, Real64(Real64, Real64, Real64))
#define ONE_OPERAND(name, f) ENTRY(name ".f32", f, Real(Real)), ENTRY(name ".ftz.f32", f, Ftz(Ftz)), ENTRY(name ".f64", f, Real64(Real64))
#define DIVISION(name, f) \
    BINARY(name ".f32", f, Real(Real, Real)), BINARY(name ".ftz.f32", f, Ftz(Ftz, Ftz)), \
    BINARY(name ".f64", f, Real64(Real64, Real64))
#define BY_EACH_RULE(macro, name, f) macro(name ".rz", f<to_zero>), macro(name ".rm", f<down>), macro(name ".rp", f<up>)
#define EXTREME(name, f) \
    BINARY(name ".f32", f, Real(Real, Real)), BINARY(name ".ftz.f32", f, Ftz(Ftz, Ftz)), \
    BINARY(name ".f64", f, Real64(Real64, Real64)), \
        ENTRY(name ".NaN.f32", or_nan<f>, Real(Real, Real)), ENTRY(name ".ftz.NaN.f32", or_nan<f>, Ftz(Ftz, Ftz)), \
        ENTRY(name ".xorsign.abs.f32", of_magnitudes<f>, Real(Real, Real)), \
        ENTRY(name ".ftz.xorsign.abs.f32", of_magnitudes<f>, Ftz(Ftz, Ftz)), \
        ENTRY(name ".NaN.xorsign.abs.f32", of_magnitudes<or_nan<f>>, Real(Real, Real)), \
        ENTRY(name ".ftz.NaN.xorsign.abs.f32", of_magnitudes<or_nan<f>>, Ftz(Ftz, Ftz))
#define COMPARE(name, f) \
    BINARY("setp." name ".f32", f, Pred(float, float)), BINARY("setp." name ".ftz.f32", f, Pred(Ftz, Ftz)), \
    BINARY("setp." name ".f64", f, Pred(double, double))
#define APPROXIMATE(name, f) ENTRY(name ".approx.f32", f, Doubled<>(Doubled<>)), ENTRY(name ".approx.ftz.f32", f, Doubled<true>(Doubled<true>))
#define CLASS(name, f) ENTRY("testp." name ".f32", f, Pred(float)), ENTRY("testp." name ".f64", f, Pred(double))

REGISTER(alu_float,
    TWO_OPERANDS("add", add), TWO_OPERANDS("sub", sub), TWO_OPERANDS("mul", mul), THREE_OPERANDS("fma", multiply_add),
    BY_EACH_RULE(TWO_OPERANDS, "add", add_by), BY_EACH_RULE(TWO_OPERANDS, "sub", sub_by),
    BY_EACH_RULE(TWO_OPERANDS, "mul", mul_by),
    BY_EACH_RULE(THREE_OPERANDS, "fma", fma_by),
    DIVISION("div", divide), BY_EACH_RULE(DIVISION, "div", div_by), ONE_OPERAND("rcp", reciprocal),
    BY_EACH_RULE(ONE_OPERAND, "rcp", rcp_by),
    ONE_OPERAND("sqrt", root), BY_EACH_RULE(ONE_OPERAND, "sqrt", sqrt_by),
    BINARY("div.approx.f32", divide, Real(Real, Real)), BINARY("div.approx.ftz.f32", divide, Ftz(Ftz, Ftz)),
    BINARY("div.full.f32", divide, Real(Real, Real)), BINARY("div.full.ftz.f32", divide, Ftz(Ftz, Ftz)),
    ENTRY("rcp.approx.f32", reciprocal, Real(Real)), ENTRY("rcp.approx.ftz.f32", reciprocal, Ftz(Ftz)),
    ENTRY("sqrt.approx.f32", root, Real(Real)), ENTRY("sqrt.approx.ftz.f32", root, Ftz(Ftz)),
    APPROXIMATE("rsqrt", reciprocal_root), APPROXIMATE("ex2", exp2_of), APPROXIMATE("lg2", log2_of),
    APPROXIMATE("sin", sine_of<0>),
    APPROXIMATE("cos", sine_of<1>), ENTRY("tanh.approx.f32", tanh_of, Doubled<>(Doubled<>)),
    ENTRY("rcp.approx.ftz.f64", reciprocal, Float<double, true>(Float<double, true>)),
    ENTRY("rsqrt.approx.f64", reciprocal_root, Real64(Real64)),
    ENTRY("rsqrt.approx.ftz.f64", reciprocal_root, Float<double, true>(Float<double, true>)),
    EXTREME("min", least_float), EXTREME("max", greatest_float),
    ENTRY("neg.f32", negate, float(float)), ENTRY("neg.ftz.f32", negate, Ftz(Ftz)),
    ENTRY("neg.f64", negate, double(double)),
    ENTRY("abs.f32", absolute, float(float)), ENTRY("abs.ftz.f32", absolute, Ftz(Ftz)),
    ENTRY("abs.f64", absolute, double(double)),
    ENTRY("copysign.f32", copy_sign, float(float, float)), ENTRY("copysign.f64", copy_sign, double(double, double)),
    CLASS("finite", is_finite), CLASS("infinite", is_infinite), CLASS("number", is_number), CLASS("notanumber", is_nan),
    CLASS("normal", is_normal), CLASS("subnormal", is_subnormal),
    ALL_COMPARISONS(COMPARE));

}  // namespace
}  // namespace machine::alu
