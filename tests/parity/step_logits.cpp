// Logits of a small model by the native step, printed: the same program for any processor, so that one can be held against
// another. Arguments: kind of the products (linear.h), bits (of groups), type of the cache, 1 for bfloat16 activations.
#include <cmath>
#include <cstdio>

#include "step.cpp"

static uint32_t state = 1;
static float number() {  // in [-1, 1)
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}
static std::vector<float> numbers(size_t n, float scale, float mean = 0) {
    std::vector<float> out(n);
    for (auto& x : out) x = mean + scale * number();
    return out;
}

struct Product {
    std::vector<float> dense, scale, minimum;
    std::vector<uint8_t> bytes;
    std::vector<uint16_t> half;
    LinearSource source{};

    Product(int kind, int bits, int n, int k) : dense(numbers((size_t)n * k, 1.7f / std::sqrt((float)k))) {
        source.kind = kind, source.n = n, source.k = k;
        source.weight = dense.data();
        if (kind == BF16) {
            for (float x : dense) half.push_back(float_to_bf16(x));
            source.weight = half.data();
        } else if (kind != F32) {
            const int group = kind == GROUPS ? 32 : k, most = kind == GROUPS ? (1 << bits) - 1 : 127;
            source.group = group, source.bits = bits;
            for (size_t at = 0; at < dense.size(); at += group) {
                float low = 0, top = 0;
                for (int i = 0; i < group; ++i) low = std::fmin(low, dense[at + i]), top = std::fmax(top, std::fabs(dense[at + i]));
                const float step = kind == GROUPS ? (top - low) / most : top / most;
                scale.push_back(step), minimum.push_back(low);
                for (int i = 0; i < group; ++i)
                    bytes.push_back((uint8_t)(int)std::nearbyint(kind == GROUPS ? (dense[at + i] - low) / step : dense[at + i] / step));
            }
            source.weight = bytes.data(), source.scale = scale.data();
            if (kind == GROUPS) source.minimum = minimum.data();
        }
    }
};

int main(int, char** argument) {
    const int kind = std::atoi(argument[1]), bits = std::atoi(argument[2]), kv = std::atoi(argument[3]), bf16 = std::atoi(argument[4]);
    constexpr int HIDDEN = 128, INNER = 160, HEADS = 6, KV_HEADS = 2, DIM = 64, VOCAB = 75, LAYERS = 2, TOKENS = 150, BLOCK_SIZE = 8;
    auto embedding = numbers(VOCAB * HIDDEN, 1), norm = numbers(HIDDEN, 0.1f, 1);
    std::vector<uint16_t> short_embedding;
    for (float x : embedding) short_embedding.push_back(float_to_bf16(x));
    ModelSource source{HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, DIM, VOCAB, 2, 48, 64, 2, 1e-5f, bf16, bf16 ? (void*)short_embedding.data() : embedding.data(),
                       norm.data()};
    void* model = io_create(&source);
    std::vector<std::vector<char>> caches;
    std::vector<std::vector<float>> scales;
    std::vector<void*> k, v;
    std::vector<float*> k_scale, v_scale;
    const int blocks = (TOKENS + 1 + BLOCK_SIZE) / BLOCK_SIZE;
    caches.reserve(2 * LAYERS), scales.reserve(2 * LAYERS);
    for (int i = 0; i < LAYERS; ++i) {
        Product qkv(kind, bits, (HEADS + 2 * KV_HEADS) * DIM, HIDDEN), o(kind, bits, HIDDEN, HEADS * DIM);
        Product gate_up(kind, bits, 2 * INNER, HIDDEN), down(kind, bits, HIDDEN, INNER);
        LayerSource layer{qkv.source, o.source, gate_up.source, down.source, norm.data(), norm.data(), nullptr, nullptr, 0};
        io_add_layer(model, &layer);
        for (auto* to : {&k, &v}) {
            caches.emplace_back((size_t)blocks * BLOCK_SIZE * KV_HEADS * DIM * 4);
            to->push_back(caches.back().data());
        }
        for (auto* to : {&k_scale, &v_scale}) {
            scales.emplace_back((size_t)blocks * BLOCK_SIZE * KV_HEADS);
            to->push_back(scales.back().data());
        }
    }
    Product head(kind, bits, VOCAB, HIDDEN);
    io_set_head(model, &head.source);
    std::vector<int32_t> ids, positions, slots, rows, table;
    for (int i = 0; i < blocks; ++i) table.push_back((i * 7) % blocks);
    std::vector<float> cos, sin;
    for (int t = 0; t <= TOKENS; ++t) {
        ids.push_back(t * 31 % VOCAB), positions.push_back(t), rows.push_back(t);
        slots.push_back(table[t / BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE);
        for (int i = 0; i < DIM / 2; ++i) {
            const double angle = t * std::pow(10000.0, -2.0 * i / DIM);
            cos.push_back((float)std::cos(angle)), sin.push_back((float)std::sin(angle));
        }
    }
    // a prompt, then a token
    for (int from : {0, TOKENS}) {
        const int count = from ? 1 : TOKENS, start[] = {0, count}, context = from + count;
        std::vector<float> logits((size_t)count * VOCAB);
        io::Step step{count, 1, count, blocks, BLOCK_SIZE, kv, 0, 1, ids.data() + from, positions.data() + from, slots.data() + from, start,
                      &context, table.data(), rows.data(), cos.data(), sin.data(), k.data(), v.data(), k_scale.data(), v_scale.data(),
                      logits.data(), nullptr};
        io_run(model, &step);
        for (float x : logits) std::printf("%.9g\n", x);
    }
    io_destroy(model);
}
