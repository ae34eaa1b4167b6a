// A whole decoder step in one call: embedding, layers, output head, over a varlen batch of sequences.
#include "model.h"

using namespace io;

extern "C" {

void* io_create(const ModelSource* source) { return new Model(*source); }

// Packs a layer's weights; the sources are not needed afterwards. Returns the bytes that it takes.
int64_t io_add_layer(void* model, const LayerSource* source) {
    Model& m = *(Model*)model;
    auto layer = std::make_unique<Layer>();
    int64_t bytes = m.take(layer->qkv, source->qkv) + m.take(layer->o, source->o);
    bytes += m.take(layer->gate_up, source->gate_up, true) + m.take(layer->down, source->down);
    auto copy = [](Array<float>& to, const float* from, int n) {
        if (from) to.assign(from, from + n);
    };
    copy(layer->input_norm, source->input_norm, m.s.hidden);
    copy(layer->post_norm, source->post_norm, m.s.hidden);
    copy(layer->q_norm, source->q_norm, m.s.head_dim);
    copy(layer->k_norm, source->k_norm, m.s.head_dim);
    layer->window = source->window;
    m.layers.push_back(std::move(layer));
    return bytes;
}

int64_t io_set_head(void* model, const LinearSource* source) {
    Model& m = *(Model*)model;
    return m.take(m.head, *source);
}

void io_run(void* model, const Step* step) { ((Model*)model)->run(*step); }
void io_destroy(void* model) { delete (Model*)model; }
int32_t io_abi() { return 5; }
const char* io_isa() {
#if defined(IO_VNNI) && defined(IO_BF16_DOT)
    return "avx512-vnni-bf16";
#elif defined(IO_VNNI)
    return "avx512-vnni";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "portable";
#endif
}

}  // extern "C"
