//! Tensors that do not fit the shapes of an operation: an error, and no access beyond an allocation.

use flashjob_cpu::{AttentionShape, Isa};
use flashjob_cuda::Cuda;
use flashjob_engine::{AddRmsNorm, CpuNodes, EngineLimits, Platform as _};
use flashjob_model::Dtype;

#[test]
fn a_tensor_that_is_too_small_or_of_another_type_is_refused_before_a_launch() {
    let limits = EngineLimits {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        block_size: 32,
        num_blocks: 4,
        num_spare_blocks: 1,
        vocab_size: 10,
    };
    let cpus = CpuNodes { threads: 1, isa: Isa::Portable, nodes: 1 };
    let handles = Cuda.open(1, cpus, Dtype::Bf16, false).unwrap();
    let engines = handles.ready(&limits, AttentionShape { heads: 2, kv_heads: 1, head_dim: 8 }, 1).unwrap();
    let device = &engines[0].ranks()[0];
    let residual = device.zeros(16, Dtype::F32).unwrap().reshape((2, 8)).unwrap();
    let weight = device.zeros(8, Dtype::F32).unwrap();
    for (count, dtype, refusal) in [
        (16, Dtype::Bf16, None),
        (8, Dtype::Bf16, Some("a norm needs 16 numbers, and there are 8")),
        (16, Dtype::F32, Some("does not take numbers of type F32")),
    ] {
        let normed = device.zeros(count, dtype).unwrap();
        let (residual, weight, normed) = (&residual, &weight, &normed);
        let op = AddRmsNorm { residual, delta: None, delta_norm: None, weight, eps: 1e-5, normed };
        let refused = device.add_rms_norm(&op).err().map(|error| error.to_string());
        let expected = refusal.map_or(refused.is_none(), |part| refused.as_ref().is_some_and(|it| it.contains(part)));
        assert!(expected, "{count} numbers of {dtype:?}: {refused:?}");
    }
}
