// Sixteen lanes at a time, by the compiler's own vector types: AVX-512, AVX2, NEON or plain SSE from one source.
// Instructions that no vector type expresses (VNNI and bfloat16 dot products) stand in gemm.h under their feature macro.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)
#define IO_VNNI 1
#endif
#if defined(__AVX512BF16__)
#define IO_BF16_DOT 1
#endif

namespace io {

typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef int8_t v16b __attribute__((vector_size(16)));
typedef uint8_t v16ub __attribute__((vector_size(16)));

// Arrays that begin where a vector and a cache line do: sixteen lanes that straddle two lines cost twice.
template <class T>
struct OnLines {
    using value_type = T;
    OnLines() = default;
    template <class U>
    OnLines(const OnLines<U>&) {}
    T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const OnLines&) const { return true; }
    bool operator!=(const OnLines&) const { return false; }
};
template <class T>
using Array = std::vector<T, OnLines<T>>;

static inline v16f splat(float x) { return v16f{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline v16i splat(int32_t x) { return v16i{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

template <class V, class T>
static inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}
template <class V, class T>
static inline void store(T* p, V v) { std::memcpy(p, &v, sizeof(V)); }

// a * b + c, rounded once where the processor can. The sources are compiled without contraction, so that a sum has the
// same bits wherever it is written down: a sequence decoded token by token equals the same sequence computed at once.
static inline v16f madd(v16f a, v16f b, v16f c) {
#if defined(__AVX512F__)
    return (v16f)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    v16f r;
    for (int i = 0; i < 16; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}

#if defined(IO_VNNI)
// As an instruction, because GCC copies every accumulator around the intrinsic.
static inline void dot4(__m512i& sum, __m512i w, __m512i x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
#endif

static inline v16f select(v16i mask, v16f a, v16f b) { return (v16f)((mask & (v16i)a) | (~mask & (v16i)b)); }
static inline v16f vmax(v16f a, v16f b) { return select(a > b, a, b); }
static inline v16f vabs(v16f a) { return (v16f)((v16i)a & 0x7fffffff); }

// Nearest integer, ties to even, for |x| < 2^22: what torch.round does.
static inline v16f vround(v16f x) {
    const v16f magic = splat(12582912.0f);
    return (x + magic) - magic;
}

// Fixed trees, so that a sum does not depend on the instruction set.
static inline float reduce_add(v16f v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float a[16];
    store(a, v);
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; ++i) a[i] += a[i + n];
    return a[0];
#endif
}
#if defined(__clang__)
#define IO_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define IO_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, v16i{__VA_ARGS__})
#endif

// v[i][j] becomes v[j][i].
static inline void transpose_16(v16f* v) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (!(i & 8)) {
            const v16f a = v[i], b = v[i + 8];
            v[i] = IO_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
            v[i + 8] = IO_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (!(i & 4)) {
            const v16f a = v[i], b = v[i + 4];
            v[i] = IO_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            v[i + 4] = IO_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (!(i & 2)) {
            const v16f a = v[i], b = v[i + 2];
            v[i] = IO_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            v[i + 2] = IO_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (!(i & 1)) {
            const v16f a = v[i], b = v[i + 1];
            v[i] = IO_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
            v[i + 1] = IO_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
        }
}
static inline float reduce_max(v16f v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float a[16], m;
    store(a, v);
    m = a[0];
    for (int i = 1; i < 16; ++i) m = a[i] > m ? a[i] : m;
    return m;
}

// e^x to about 2 ulp. Source: Cephes expf (range reduction by ln 2, degree-5 polynomial).
static inline v16f vexp(v16f x) {
#if defined(__AVX512F__)
    x = (v16f)_mm512_min_ps(_mm512_max_ps((__m512)x, _mm512_set1_ps(-110.0f)), _mm512_set1_ps(110.0f));
    const v16f n = (v16f)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), 0);
#else
    x = select(x > splat(88.0f), splat(88.0f), x);
    const v16i tiny = x < splat(-87.0f);
    x = select(tiny, splat(-87.0f), x);
    const v16f n = vround(x * 1.44269504088896341f);
#endif
    x = madd(n, splat(-0.693359375f), x);
    x = madd(n, splat(2.12194440e-4f), x);
    v16f y = splat(1.9875691500e-4f);
    y = madd(y, x, splat(1.3981999507e-3f));
    y = madd(y, x, splat(8.3334519073e-3f));
    y = madd(y, x, splat(4.1665795894e-2f));
    y = madd(y, x, splat(1.6666665459e-1f));
    y = madd(y, x, splat(5.0000001201e-1f));
    y = madd(y, x * x, x) + 1.0f;
#if defined(__AVX512F__)
    return (v16f)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    const v16i e = (__builtin_convertvector(n, v16i) + 127) << 23;
    return select(tiny, v16f{}, y * (v16f)e);
#endif
}
static inline v16f silu(v16f x) { return x / (1.0f + vexp(-x)); }

static inline float bf16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t float_to_bf16(float f) {  // nearest, ties to even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)((u >> 16) | 64);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float half_to_float(uint16_t h) {  // IEEE float16
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    uint32_t u = sign | (rest >= 0x0f800000 ? rest + 0x70000000 : rest + 0x38000000);  // infinity and NaN stay so
    if (rest < 0x00800000) {  // zero or below the normal range: 2^-24 a unit
        const float f = (float)(h & 0x7fff) * 5.9604644775390625e-8f;
        std::memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

static inline void store_half(uint16_t* to, v16f x) {  // nearest, ties to even; NaN stays NaN
#if defined(IO_BF16_DOT)
    const v16i odd = (v16i)(x != x);
    if (!_mm512_test_epi32_mask((__m512i)odd, (__m512i)odd)) {
        const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
        std::memcpy(to, &h, 32);
        return;
    }
#endif
    for (int i = 0; i < 16; ++i) to[i] = float_to_bf16(x[i]);
}
static inline void store_byte(int8_t* to, v16f whole) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)whole)));
#else
    store(to, __builtin_convertvector(__builtin_convertvector(whole, v16i), v16b));
#endif
}

// Sixteen elements of any stored type as floats.
static inline v16f widen(const float* p) { return load<v16f>(p); }
static inline v16f widen(const uint16_t* p) { return (v16f)(__builtin_convertvector(load<v16h>(p), v16u) << 16); }
static inline v16f widen(const int8_t* p) {
#if defined(__AVX512F__)
    return (v16f)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    return __builtin_convertvector(load<v16b>(p), v16f);
#endif
}
static inline v16f widen(v16ub x) { return __builtin_convertvector(x, v16f); }
static inline v16f widen(const uint8_t* p) { return widen(load<v16ub>(p)); }

}  // namespace io
