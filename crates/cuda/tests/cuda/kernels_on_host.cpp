// The kernels of crates/cuda/src/kernels.cu on the host, against double precision, on random shapes and odd ones.
//
// Prints the largest error of each kernel, in units of what rounding to its type allows, and fails above 1.

#include "cuda_on_host.h"

#include "../../src/kernels.cu"

#include <stdio.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <string>

namespace {

std::mt19937 generator(20261124);

uint32_t below(uint32_t end) { return std::uniform_int_distribution<uint32_t>(0, end - 1)(generator); }
float number() { return std::normal_distribution<float>(0, 1)(generator); }

std::map<std::string, double> largest;

// `allowed` is the rounding of the result, relative to `size`.
void compare(const std::string &kernel, double found, double expected, double allowed, double size) {
    const double error = std::abs(found - expected) / (allowed * std::max(size, 1e-3));
    double &worst = largest[kernel];
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
}

template <typename T> struct Type;
template <> struct Type<__half> {
    static constexpr double ROUNDING = 1.0 / 1024;
    static constexpr const char *NAME = "f16";
};
template <> struct Type<__nv_bfloat16> {
    static constexpr double ROUNDING = 1.0 / 128;
    static constexpr const char *NAME = "bf16";
};

template <typename T> std::vector<T> numbers(size_t count) {
    std::vector<T> all(count);
    for (T &x : all) x = narrow<T>(number());
    return all;
}

std::vector<float> floats(size_t count) {
    std::vector<float> all(count);
    for (float &x : all) x = number();
    return all;
}

std::vector<uint32_t> distinct(size_t count, uint32_t end) {
    std::vector<uint32_t> all(end);
    for (uint32_t i = 0; i < end; i++) all[i] = i;
    std::shuffle(all.begin(), all.end(), generator);
    all.resize(count);
    return all;
}

template <typename T> double mean_square(const T *x, size_t count, double (*wide)(T)) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += wide(x[i]) * wide(x[i]);
    return sum / count;
}

// As crates/cuda/src/kernels.rs has them.
uint32_t row_threads(uint32_t entries) {
    const uint32_t packs = entries % PACK == 0 ? entries / PACK : entries;
    return std::min((packs + 31) / 32 * 32, 1024u);
}

template <typename T> void test_embed(uint32_t tokens, uint32_t hidden) {
    const uint32_t first = below(5), end = first + 1 + below(20);
    auto table = numbers<T>((end - first) * hidden);
    std::vector<uint32_t> ids(tokens);
    std::vector<uint32_t> chosen(7);
    for (uint32_t &id : chosen) id = below(end + 5);
    std::vector<uint32_t> given(tokens);
    for (uint32_t t = 0; t < tokens; t++) {
        const uint32_t place = below(chosen.size());
        ids[t] = below(2) ? chosen[place] : below(end + 5);
        given[t] = ids[t] == chosen[place] ? CHOSEN_BEFORE + place : ids[t];
    }
    std::vector<float> residual(tokens * hidden, NAN);
    const float scale = number();
    host::launch(tokens, row_threads(hidden), [&] { embed(table.data(), given.data(), chosen.data(), residual.data(), hidden, first, end, scale);
    });
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t i = 0; i < hidden; i++) {
            const bool here = ids[t] >= first && ids[t] < end;
            const double expected = here ? (double)widen(table[(ids[t] - first) * hidden + i]) * scale : 0;
            compare(std::string("embed_") + Type<T>::NAME, residual[t * hidden + i], expected, 1e-7, std::abs(expected));
        }
}

template <typename T> void test_add_rms_norm(uint32_t rows, uint32_t hidden, bool with_delta, bool with_norm) {
    auto residual = floats(rows * hidden), weight = floats(hidden), delta_norm = floats(hidden);
    auto delta = numbers<T>(rows * hidden);
    auto before = residual;
    std::vector<T> normed(rows * hidden, narrow<T>(NAN));
    const float eps = 1e-5f;
    host::launch(rows, row_threads(hidden), [&] {
        add_rms_norm(residual.data(), with_delta ? delta.data() : nullptr, with_norm ? delta_norm.data() : nullptr,
                     weight.data(), normed.data(), hidden, eps);
    });
    for (uint32_t r = 0; r < rows; r++) {
        double squares = 0;
        for (uint32_t i = 0; i < hidden; i++) squares += std::pow((double)widen(delta[r * hidden + i]), 2);
        const double delta_scale = with_norm ? 1 / std::sqrt(squares / hidden + eps) : 1;
        std::vector<double> expected(hidden);
        squares = 0;
        for (uint32_t i = 0; i < hidden; i++) {
            double added = with_delta ? widen(delta[r * hidden + i]) * delta_scale * (with_norm ? delta_norm[i] : 1) : 0;
            expected[i] = before[r * hidden + i] + added;
            squares += expected[i] * expected[i];
            compare("add_rms_norm, residual", residual[r * hidden + i], expected[i], 1e-6, 1 + std::abs(expected[i]));
        }
        const double scale = 1 / std::sqrt(squares / hidden + eps);
        for (uint32_t i = 0; i < hidden; i++) {
            const double y = expected[i] * scale * weight[i];
            compare(std::string("add_rms_norm_") + Type<T>::NAME, widen(normed[r * hidden + i]), y, Type<T>::ROUNDING,
                    std::abs(y));
        }
    }
}

template <typename T> void test_norm_heads(uint32_t rows, uint32_t heads, uint32_t head_dim) {
    const uint32_t first = below(3) * head_dim, width = first + heads * head_dim + below(9);
    auto x = numbers<T>(rows * width), before = x;
    auto weight = floats(head_dim);
    const float eps = 1e-6f;
    const uint32_t blocks = (rows * heads * 32 + 255) / 256;
    host::launch(blocks, 256, [&] { norm_heads(x.data(), weight.data(), rows, width, first, heads, head_dim, eps); });
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < width; i++) {
            const bool normed = i >= first && i < first + heads * head_dim;
            double expected = widen(before[r * width + i]);
            if (normed) {
                const uint32_t head = (i - first) / head_dim;
                double squares = 0;
                for (uint32_t j = 0; j < head_dim; j++)
                    squares += std::pow((double)widen(before[r * width + first + head * head_dim + j]), 2);
                expected *= weight[(i - first) % head_dim] / std::sqrt(squares / head_dim + eps);
            }
            compare(std::string("norm_heads_") + Type<T>::NAME, widen(x[r * width + i]), expected,
                    normed ? Type<T>::ROUNDING : 1e-9, std::abs(expected));
        }
}

template <typename T> void test_rope_and_cache(uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t half) {
    const uint32_t positions_end = 50, slots_end = tokens + 7, width = (heads + 2 * kv_heads) * head_dim;
    auto qkv = numbers<T>(tokens * width), before = qkv;
    auto cos = floats(positions_end * half), sin = floats(positions_end * half);
    std::vector<uint32_t> positions(tokens);
    for (uint32_t &position : positions) position = below(positions_end);
    auto slots = distinct(tokens, slots_end);
    const T untouched = narrow<T>(1234.0f);
    std::vector<T> keys(slots_end * kv_heads * head_dim, untouched), values = keys;
    host::launch(tokens, 256, [&] {
        rope_and_cache(qkv.data(), cos.data(), sin.data(), positions.data(), slots.data(), keys.data(), values.data(), heads,
                       kv_heads, head_dim, half);
    });
    const std::string name = std::string("rope_and_cache_") + Type<T>::NAME;
    std::vector<bool> written(slots_end);
    for (uint32_t t = 0; t < tokens; t++) {
        written[slots[t]] = true;
        for (uint32_t head = 0; head < heads + 2 * kv_heads; head++)
            for (uint32_t i = 0; i < head_dim; i++) {
                const T *from = &before[t * width + head * head_dim];
                double expected = widen(from[i]), size = std::abs(expected);
                const bool turned = head < heads + kv_heads && i < 2 * half;
                if (turned) {
                    const float c = cos[positions[t] * half + i % half], s = sin[positions[t] * half + i % half];
                    const double a = widen(from[i % half]), b = widen(from[i % half + half]);
                    expected = i < half ? a * c - b * s : b * c + a * s;
                    size = std::abs(expected) + 1e-3;
                }
                const uint32_t at = slots[t] * kv_heads * head_dim + i;
                const T found = head < heads              ? qkv[t * width + head * head_dim + i]
                                : head < heads + kv_heads ? keys[at + (head - heads) * head_dim]
                                                          : values[at + (head - heads - kv_heads) * head_dim];
                compare(name, widen(found), expected, turned ? Type<T>::ROUNDING : 1e-9, size);
            }
    }
    for (uint32_t slot = 0; slot < slots_end; slot++)
        for (uint32_t i = 0; i < kv_heads * head_dim && !written[slot]; i++) {
            compare(name, widen(keys[slot * kv_heads * head_dim + i]), widen(untouched), 1e-9, 1);
            compare(name, widen(values[slot * kv_heads * head_dim + i]), widen(untouched), 1e-9, 1);
        }
}

template <typename T> void test_gated(uint32_t rows, uint32_t width, bool gelu) {
    auto gate_up = numbers<T>(rows * 2 * width);
    std::vector<T> activated(rows * width, narrow<T>(NAN));
    host::launch((rows * width + 255) / 256, 256, [&] { gated(gate_up.data(), activated.data(), rows, width, gelu); });
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < width; i++) {
            const double gate = widen(gate_up[r * 2 * width + i]), up = widen(gate_up[r * 2 * width + width + i]);
            const double silu = gate / (1 + std::exp(-gate));
            const double tanh = 0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate)));
            const double expected = (gelu ? tanh : silu) * up;
            compare(std::string("gated_") + Type<T>::NAME, widen(activated[r * width + i]), expected, Type<T>::ROUNDING,
                    std::abs(expected));
        }
}

template <typename T> void test_join_parts(uint32_t sequences, uint32_t most_parts, uint32_t heads, uint32_t head_dim) {
    std::vector<uint32_t> parts_before{0};
    for (uint32_t s = 0; s < sequences; s++) parts_before.push_back(parts_before.back() + (s ? 1 + below(most_parts) : most_parts));
    const uint32_t parts = parts_before.back();
    auto of_parts = numbers<T>(parts * heads * head_dim);
    auto log_sums = floats(parts * heads);
    // Of parts without keys; the first one of a sequence has some.
    for (uint32_t s = 0; s < sequences; s++)
        for (uint32_t row = (parts_before[s] + 1) * heads; row < parts_before[s + 1] * heads; row++)
            if (below(4) == 0) log_sums[row] = below(2) ? INFINITY : -INFINITY;
    for (float &log_sum : log_sums) log_sum *= 30;
    std::vector<T> out(sequences * heads * head_dim, narrow<T>(NAN));
    host::launch(sequences * heads, (head_dim + 31) / 32 * 32,
                 [&] { join_parts(of_parts.data(), log_sums.data(), parts_before.data(), out.data(), heads, head_dim); });
    for (uint32_t s = 0; s < sequences; s++)
        for (uint32_t h = 0; h < heads; h++) {
            double largest = -INFINITY, sum = 0;
            const auto rows = [&](const auto &visit) {
                for (uint32_t part = parts_before[s]; part < parts_before[s + 1]; part++)
                    if (std::isfinite(log_sums[part * heads + h])) visit(part * heads + h);
            };
            rows([&](uint32_t row) { largest = std::max(largest, (double)log_sums[row]); });
            std::vector<double> values(head_dim), sizes(head_dim);
            rows([&](uint32_t row) {
                const double weight = std::exp(log_sums[row] - largest);
                sum += weight;
                for (uint32_t i = 0; i < head_dim; i++) {
                    const double value = weight * widen(of_parts[row * head_dim + i]);
                    values[i] += value, sizes[i] += std::abs(value);
                }
            });
            for (uint32_t i = 0; i < head_dim; i++)
                compare(std::string("join_parts_") + Type<T>::NAME, widen(out[(s * heads + h) * head_dim + i]), values[i] / sum,
                        Type<T>::ROUNDING, sizes[i] / sum);
        }
}

template <typename T> void test_fill_rows(uint32_t rows, uint32_t width) {
    auto bias = floats(width);
    std::vector<T> y(rows * width, narrow<T>(NAN));
    host::launch((rows * width + 255) / 256, 256, [&] { fill_rows(bias.data(), y.data(), rows, width); });
    for (uint32_t i = 0; i < rows * width; i++)
        compare(std::string("fill_rows_") + Type<T>::NAME, widen(y[i]), bias[i % width], Type<T>::ROUNDING, std::abs(bias[i % width]));
}

void test_gather_rows(uint32_t count, uint32_t width) {
    std::vector<uint32_t> from((count + 5) * width), to(count * width);
    for (uint32_t &x : from) x = below(1 << 30);
    auto rows = distinct(count, count + 5);
    host::launch(count, 256, [&] { gather_rows(from.data(), rows.data(), to.data(), width); });
    for (uint32_t i = 0; i < count * width; i++)
        compare("gather_rows", to[i], from[rows[i / width] * width + i % width], 1e-9, 1);
}

void test_place_columns(uint32_t rows, uint32_t width) {
    const uint32_t before = below(7), after = below(7), whole_width = before + width + after;
    auto part = floats(rows * width), whole = floats(rows * whole_width), expected = whole;
    for (uint32_t i = 0; i < rows * width; i++) expected[i / width * whole_width + before + i % width] = part[i];
    host::launch((rows * width + 255) / 256, 256,
                 [&] { place_columns(part.data(), whole.data(), rows, width, whole_width, before); });
    for (uint32_t i = 0; i < rows * whole_width; i++) compare("place_columns", whole[i], expected[i], 1e-9, 1);
}

void test_softcap(uint32_t count) {
    auto x = floats(count), before = x;
    host::launch((count + 255) / 256, 256, [&] { softcap(x.data(), count, 0.7f); });
    for (uint32_t i = 0; i < count; i++) {
        const double expected = 0.7f * std::tanh((double)before[i] / 0.7f);
        compare("softcap", x[i], expected, 3e-7, std::abs(expected));
    }
}

template <typename T> void test_all_of() {
    for (uint32_t hidden : {1u, 3u, 64u, 255u, 257u, 1000u, 3001u, 4096u, 9000u, 32768u}) {
        test_embed<T>(1 + below(4), hidden);
        for (int with : {0, 1, 3}) test_add_rms_norm<T>(1 + below(3), hidden, with > 0, with > 1);
    }
    for (uint32_t head_dim : {8u, 24u, 64u, 80u, 256u}) test_norm_heads<T>(1 + below(5), 1 + below(7), head_dim);
    for (uint32_t half : {0u, 1u, 4u, 12u, 16u}) test_rope_and_cache<T>(1 + below(6), 6, 1 + below(3), 32, half);
    test_rope_and_cache<T>(3, 4, 4, 128, 64);
    test_rope_and_cache<T>(3, 5, 1, 40, 16);
    test_rope_and_cache<T>(2, 40, 8, 128, 32);
    for (uint32_t width : {1u, 31u, 256u, 300u, 304u})
        for (bool gelu : {false, true}) test_gated<T>(1 + below(4), width, gelu);
    for (uint32_t parts : {1u, 2u, 7u, 64u, 300u}) test_join_parts<T>(1 + below(3), parts, 1 + below(5), 8 + 8 * below(20));
    test_fill_rows<T>(3, 100);
}

}  // namespace

int main() {
    test_all_of<__half>();
    test_all_of<__nv_bfloat16>();
    for (uint32_t width : {1u, 7u, 256u, 700u}) test_gather_rows(1 + below(5), width);
    for (uint32_t width : {1u, 7u, 256u, 700u}) test_place_columns(1 + below(5), width);
    for (uint32_t count : {1u, 255u, 1000u}) test_softcap(count);
    bool failed = false;
    for (const auto &[kernel, error] : largest) {
        printf("%-28s %.3f\n", kernel.c_str(), error);
        failed |= !(error <= 1);
    }
    return failed;
}
