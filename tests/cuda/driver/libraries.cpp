// cuBLAS and cuRAND, as far as they are called, and attention.

#include "driver.h"

#include "cuda_on_host.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

namespace {

void *const SOMETHING = (void *)0x5eed;

// cuBLAS's handle.
struct Handle {
    void *stream;
    int math_mode;
};

// cublasMath_t: sums of 16-bit products stay in single precision, also where they are computed in parts.
constexpr int DISALLOW_REDUCED_PRECISION_REDUCTION = 16;

// cudaDataType_t.
constexpr int R_32F = 0, R_16F = 2, R_16BF = 14;

float load(const void *from, int type, size_t index) {
    switch (type) {
        case R_32F: return ((const float *)from)[index];
        case R_16F: return __half2float(((const __half *)from)[index]);
        case R_16BF: return __bfloat162float(((const __nv_bfloat16 *)from)[index]);
    }
    fprintf(stderr, "the stand-in cuBLAS does not know data type %d\n", type);
    abort();
}

void store(void *to, int type, size_t index, float x) {
    switch (type) {
        case R_32F: ((float *)to)[index] = x; return;
        case R_16F: ((__half *)to)[index] = __float2half_rn(x); return;
        case R_16BF: ((__nv_bfloat16 *)to)[index] = __float2bfloat16_rn(x); return;
    }
    fprintf(stderr, "the stand-in cuBLAS does not know data type %d\n", type);
    abort();
}

}  // namespace

API int cublasCreate_v2(void **handle) {
    FAIL_IF_ASKED;
    *handle = new Handle{nullptr, 0};
    return 0;
}
API int cublasDestroy_v2(void *handle) {
    delete (Handle *)handle;
    return 0;
}
API int cublasSetStream_v2(void *handle, void *stream) {
    ((Handle *)handle)->stream = stream;
    return 0;
}
API int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    FAIL_IF_ASKED;
    stand_in::demand(((Handle *)handle)->stream, workspace, bytes, "cuBLAS's workspace");
    return 0;
}

API int cublasSetMathMode(void *handle, int mode) {
    FAIL_IF_ASKED;
    ((Handle *)handle)->math_mode = mode;
    return 0;
}

// A setting of tests that is on.
static bool is_set(const char *variable) { return getenv(variable) != nullptr; }

// Matrices lie column by column. Sums are single precision, whatever the types. With STAND_IN_ROWS_MATTER they are divided into parts
// whose number follows from the number of rows of the engine's, columns here, as cuBLAS chooses its kernel by the shape of a product; with
// STAND_IN_PLACES_MATTER from the place of a row, which cuBLAS does not exclude.
API int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                     int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type,
                     int ldc, int, int) {
    FAIL_IF_ASKED;
    void *const stream = ((Handle *)handle)->stream;
    if (((Handle *)handle)->math_mode != DISALLOW_REDUCED_PRECISION_REDUCTION) {
        fprintf(stderr, "a product may be summed up in 16 bits\n");
        abort();
    }
    const float scale = *(const float *)alpha, keep = *(const float *)beta;
    const auto bytes = [](int type, size_t rows, size_t columns, size_t stride) {
        return ((columns - 1) * stride + rows) * (type == R_32F ? 4 : 2);
    };
    stand_in::demand(stream, a, transpose_a ? bytes(a_type, k, m, lda) : bytes(a_type, m, k, lda), "a product");
    stand_in::demand(stream, b, transpose_b ? bytes(b_type, n, k, ldb) : bytes(b_type, k, n, ldb), "a product");
    stand_in::demand(stream, c, bytes(c_type, m, n, ldc), "a product");
    const bool rows_matter = is_set("STAND_IN_ROWS_MATTER"), places_matter = is_set("STAND_IN_PLACES_MATTER");
    return stand_in::queue(stream, "gemm", [=] {
        std::vector<float> column(k);
        for (int j = 0; j < n; j++) {
            const int parts = places_matter ? 1 + j % 3 : rows_matter ? 1 + n % 5 : 1;
            for (int p = 0; p < k; p++)
                column[p] = load(b, b_type, transpose_b ? (size_t)p * ldb + j : (size_t)j * ldb + p);
            for (int i = 0; i < m; i++) {
                float sum = 0;
                for (int part = 0; part < parts; part++) {
                    float of_part = 0;
                    for (int p = part; p < k; p += parts)
                        of_part += load(a, a_type, transpose_a ? (size_t)i * lda + p : (size_t)p * lda + i) * column[p];
                    sum += of_part;
                }
                const size_t at = (size_t)j * ldc + i;
                store(c, c_type, at, scale * sum + (keep == 0 ? 0 : keep * load(c, c_type, at)));
            }
        }
        return 0;
    });
}

API int curandCreateGenerator(void **generator, int) {
    *generator = SOMETHING;
    return 0;
}
API int curandDestroyGenerator(void *) { return 0; }
API int curandSetStream(void *, void *) { return 0; }
API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }

namespace {

template <typename T>
struct Convert;
template <>
struct Convert<__half> {
    static float wide(__half x) { return __half2float(x); }
    static __half narrow(float x) { return __float2half_rn(x); }
};
template <>
struct Convert<__nv_bfloat16> {
    static float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

struct Strides {
    size_t batch, row, head;
};

}  // namespace

// FlashAttention's entry point as candle-flash-attn 0.11.1 compiles it, for keys and values in pages. Returns the error of its launch.
API int stand_in_run_mha(void *q_ptr, void *k_ptr, void *v_ptr, void *o_ptr, void *lse_ptr, void *alibi, int32_t *cu_q,
                          int32_t *cu_k, uint32_t q_batch, uint32_t k_batch, uint32_t v_batch, uint32_t o_batch, uint32_t,
                          uint32_t q_row, uint32_t k_row, uint32_t v_row, uint32_t o_row, uint32_t q_head, uint32_t k_head,
                          uint32_t v_head, uint32_t o_head, uint32_t batch, uint32_t heads, uint32_t kv_heads, uint32_t d,
                          uint32_t d_rounded, float scale, uint32_t seqlen_q, uint32_t seqlen_k, uint32_t, uint32_t,
                          uint32_t total_q, int is_bf16, int is_causal, int unpadded_lse, int left, int right, float softcap,
                          int32_t *block_table, uint32_t table_stride, int page, int32_t *ranges, uint32_t, int,
                          void *stream) {
    if (const int code = stand_in::failure("run_mha")) return code;
    if (block_table == nullptr || alibi != nullptr || ranges != nullptr || page % 32 != 0 || d % 8 != 0 || d > 512 ||
        d_rounded % 32 != 0 || cu_k == nullptr || heads % kv_heads != 0 || (unpadded_lse != 0) != (cu_q != nullptr)) {
        fprintf(stderr, "attention was called in a way that FlashAttention does not take\n");
        abort();
    }
    const Strides q{q_batch, q_row, q_head}, k{k_batch, k_row, k_head}, v{v_batch, v_row, v_head}, o{o_batch, o_row, o_head};
    // As kernels for causal masks, for local ones and for none need not round alike: STAND_IN_ROWS_MATTER adds a little to the scale.
    const float factor = !is_set("STAND_IN_ROWS_MATTER") ? 1 : is_causal ? 1 : cu_q ? 1.001f : 0.999f;
    const auto run = [=](auto zero) {
        using T = decltype(zero);
        const T *queries = (const T *)q_ptr, *keys = (const T *)k_ptr, *values = (const T *)v_ptr;
        for (uint32_t b = 0; b < batch; b++) {
            const int len_k = cu_k[b + 1] - cu_k[b], len_q = cu_q ? cu_q[b + 1] - cu_q[b] : seqlen_q;
            if (len_k > (int)seqlen_k || len_q > (int)seqlen_q) {
                fprintf(stderr, "a sequence is longer than attention was told\n");
                abort();
            }
            const size_t q_start = cu_q ? cu_q[b] * q.row : b * q.batch, o_start = cu_q ? cu_q[b] * o.row : b * o.batch;
            for (uint32_t h = 0; h < heads; h++)
                for (int i = 0; i < len_q; i++) {
                    // With a bound on either side the mask is local, and causal is only its right side.
                    const bool local = !is_causal && (left >= 0 || right >= 0);
                    int first = 0, end = len_k;
                    if (is_causal) end = std::min(end, i + 1 + len_k - len_q);
                    if (local) end = std::min(end, i + 1 + len_k - len_q + right);
                    if (local) first = std::max(first, i + len_k - len_q - left);
                    const size_t kv_head = h / (heads / kv_heads);
                    const auto place = [&](const Strides &strides, int key) {
                        return block_table[b * table_stride + key / page] * strides.batch + key % page * strides.row +
                               kv_head * strides.head;
                    };
                    const T *query = queries + q_start + i * q.row + h * q.head;
                    std::vector<double> scores, sums(d);
                    double largest = -INFINITY, total = 0;
                    for (int key = first; key < end; key++) {
                        double score = 0;
                        for (uint32_t j = 0; j < d; j++)
                            score += (double)Convert<T>::wide(query[j]) * Convert<T>::wide(keys[place(k, key) + j]);
                        score *= scale * factor;
                        if (softcap > 0) score = softcap * std::tanh(score / softcap);
                        scores.push_back(score);
                        largest = std::max(largest, score);
                    }
                    for (int key = first; key < end; key++) {
                        const double weight = std::exp(scores[key - first] - largest);
                        total += weight;
                        for (uint32_t j = 0; j < d; j++) sums[j] += weight * Convert<T>::wide(values[place(v, key) + j]);
                    }
                    if (stand_in::is_wrong("attention")) total = 0;
                    T *out = (T *)o_ptr + o_start + i * o.row + h * o.head;
                    for (uint32_t j = 0; j < d; j++) out[j] = Convert<T>::narrow(total > 0 ? sums[j] / total : 0);
                    // Where it would be written, so that room for it is tried.
                    const size_t lse = unpadded_lse ? h * (size_t)total_q + cu_q[b] + i : (b * heads + h) * (size_t)seqlen_q + i;
                    ((float *)lse_ptr)[lse] = (float)(largest + std::log(total));
                }
        }
    };
    return stand_in::queue(stream, "attention", [=] {
        if (is_bf16) run(__nv_bfloat16{}); else run(__half{});
        return 0;
    });
}
