//! The kernels of `kernels.cu` and of the folder `kernels`, loaded once.

use std::ffi::c_int;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};

use flashjob_model::Dtype;

/// `kernels.cu`, compiled by the build script: machine code and PTX, of which the driver takes what its GPU runs.
const FORWARD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// `kernels/adjust_logits.cu`, as [`FORWARD`].
const ADJUST_LOGITS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/adjust_logits.fatbin"));

/// `kernels/log_probabilities.cu`, as [`FORWARD`].
const LOG_PROBABILITIES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/log_probabilities.fatbin"));

/// `kernels/sampling.cu`, as [`FORWARD`].
const SAMPLING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sampling.fatbin"));

/// Threads of a block at most, of a kernel whose work is spread over many blocks: a grid of smaller ones ends more evenly.
const MOST_SPREAD_THREADS: u32 = 256;

/// A kernel of this GPU.
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    /// Threads of a block with which most of a processor is used, where its work can be spread over blocks of any size.
    pub(super) spread_threads: u32,
}

/// Every kernel, found once.
pub(super) struct Kernels {
    pub(super) embed: Kernel,
    pub(super) add_rms_norm: Kernel,
    pub(super) norm_heads: Kernel,
    pub(super) rope_and_cache: Kernel,
    pub(super) gated: Kernel,
    pub(super) join_parts: Kernel,
    pub(super) fill_rows: Kernel,
    pub(super) gather_rows: Kernel,
    pub(super) place_columns: Kernel,
    pub(super) softcap: Kernel,
    pub(super) adjust_logits: Kernel,
    pub(super) mask_logits: Kernel,
    pub(super) summarise_rows: Kernel,
    pub(super) chosen_logits: Kernel,
    pub(super) sample: Kernel,
}

/// Bytes of shared memory that a launch asks for beside what its kernel declares.
extern "C" fn no_dynamic_memory(_threads: c_int) -> usize {
    0
}

impl Kernels {
    pub(super) fn load(device: &CudaDevice, dtype: Dtype) -> Result<Self> {
        // Copied to where it is aligned, as the driver demands.
        let module = |binary: &[u8]| device.cuda_stream().context().load_module(Ptx::from_binary(binary.to_vec())).w();
        let (forward, sampling) = (module(FORWARD)?, module(SAMPLING)?);
        let (adjust_logits, log_probabilities) = (module(ADJUST_LOGITS)?, module(LOG_PROBABILITIES)?);
        let of = |module: &Arc<CudaModule>, name: &str| -> Result<Kernel> {
            let function = module.load_function(name).w()?;
            let (_blocks, spread_threads) =
                function.occupancy_max_potential_block_size(no_dynamic_memory, 0, MOST_SPREAD_THREADS, None).w()?;
            Ok(Kernel { function, spread_threads })
        };
        let find = |name: &str| of(&forward, name);
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
            adjust_logits: of(&adjust_logits, "adjust_logits")?,
            mask_logits: of(&sampling, "mask_logits")?,
            summarise_rows: of(&log_probabilities, "summarise_rows")?,
            chosen_logits: of(&log_probabilities, "chosen_logits")?,
            sample: of(&sampling, "sample")?,
        })
    }
}
