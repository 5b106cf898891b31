//! The kernels of `kernels.cu`, loaded once.

use candle_core::Result;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaFunction;

use flashjob_model::Dtype;

/// `kernels.cu`, compiled by the build script.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Every kernel, found once.
pub(super) struct Kernels {
    pub(super) embed: CudaFunction,
    pub(super) add_rms_norm: CudaFunction,
    pub(super) norm_heads: CudaFunction,
    pub(super) rope_and_cache: CudaFunction,
    pub(super) gated: CudaFunction,
    pub(super) join_parts: CudaFunction,
    pub(super) fill_rows: CudaFunction,
    pub(super) gather_rows: CudaFunction,
    pub(super) place_columns: CudaFunction,
    pub(super) softcap: CudaFunction,
    pub(super) argmax: CudaFunction,
}

impl Kernels {
    pub(super) fn load(device: &CudaDevice, dtype: Dtype) -> Result<Self> {
        let find = |name: &str| -> Result<CudaFunction> {
            Ok(device.get_or_load_custom_func(name, "flashjob", PTX)?.into_cuda_function())
        };
        let suffix = if dtype == Dtype::F16 { "f16" } else { "bf16" };
        let typed = |name: &str| find(&format!("{name}_{suffix}"));
        Ok(Self {
            embed: typed("embed")?,
            add_rms_norm: typed("add_rms_norm")?,
            norm_heads: typed("norm_heads")?,
            rope_and_cache: typed("rope_and_cache")?,
            gated: typed("gated")?,
            join_parts: typed("join_parts")?,
            fill_rows: typed("fill_rows")?,
            gather_rows: find("gather_rows")?,
            place_columns: find("place_columns")?,
            softcap: find("softcap")?,
            argmax: find("argmax")?,
        })
    }
}
