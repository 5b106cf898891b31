//! SGLang as a backend: its driver, its plugin, its words, and what it does not have.

use super::child_engine::{DRIVER_MODULE, Driver, Product};

/// SGLang with its scheduler and detokeniser in processes of their own, and everything else that the user does not set as SGLang has
/// it.
pub static SGLANG: Product = Product {
    name: "SGLang",
    backend: "sglang",
    driver: Driver {
        modules: &[DRIVER_MODULE, ("flashjob_sglang", include_str!("sglang/plugin.py"))],
        main: include_str!("sglang/driver.py"),
        variables: &[("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"), ("DO_NOT_TRACK", "1")],
        log_name: "sglang",
    },
    arguments_key: "sglang-args",
    arguments: |job| &job.sglang_arguments,
    takes_requests_while_it_runs: false,
    without_counterpart: &[
        (
            "deterministic",
            "false",
            "SGLang has it as --enable-deterministic-inference, for some attention kernels only",
        ),
        ("quantization", "auto", "it follows the checkpoint by itself; sglang-args has its own `quantization`"),
        ("validate-weights", "false", "it does not look at the weights that it loads"),
        ("step-timeout-seconds", "auto", "it watches its steps by itself"),
        ("schedule", "input", "it decides by itself which request runs next"),
        ("measure-limits", "false", "it does not say what its steps need, so there is nothing to hold limits against"),
        (
            "kv-cache-memory",
            "",
            "it counts tokens, so that the same number of bytes depends on the model; set max_total_tokens in sglang-args",
        ),
    ],
    decided: &[
        ("model", "set model"),
        ("model_path", "set model"),
        ("tokenizer_path", "set tokenizer"),
        ("device", "set device"),
        ("dtype", "set dtype"),
        ("tp", "set tensor-parallel-size"),
        ("tp_size", "set tensor-parallel-size"),
        ("tensor_parallel_size", "set tensor-parallel-size"),
        ("dp", "set data-parallel-size"),
        ("dp_size", "set data-parallel-size"),
        ("data_parallel_size", "set data-parallel-size"),
        ("context_length", "set max-model-len"),
        ("mem_fraction_static", "set gpu-memory-utilization"),
        ("max_running_requests", "set max-num-seqs"),
        ("chunked_prefill_size", "set max-num-batched-tokens"),
        ("max_prefill_tokens", "set max-num-batched-tokens"),
        ("disable_radix_cache", "set enable-prefix-caching"),
        ("disable_cuda_graph", "set enforce-eager"),
        ("page_size", "set block-size"),
        ("random_seed", "set seed"),
        ("config", "name its settings one by one"),
        ("skip_tokenizer_init", "leave it out: answers are texts"),
        ("tokenizer_worker_num", "leave it out: one process asks for all answers"),
        ("nnodes", "leave it out: only backend=candle shares a model with other nodes"),
    ],
};
