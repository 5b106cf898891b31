//! Matrix products by cuBLAS, from and into memory that is there already.

use std::ffi::c_void;

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};

use super::address::Address;
use super::gpu::Gpu;
use flashjob_model::Dtype;

/// `y = x · Wᵀ`, or `y += x · Wᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct ProductAt {
    /// `[rows, in]`.
    pub x: Address,
    /// `[out, in]`.
    pub weight: Address,
    /// `[rows, out]`.
    pub y: Address,
    /// True where `y` is single precision; as `x` and `weight` otherwise.
    pub wide: bool,
    /// True where `y` is added to.
    pub add: bool,
}

impl Gpu {
    /// Queues a product of `rows` rows; sums are single precision.
    ///
    /// # Errors
    /// The error of cuBLAS.
    pub fn product(&self, rows: usize, [out, in_]: [usize; 2], at: ProductAt) -> Result<()> {
        if rows == 0 || out == 0 {
            return Ok(());
        }
        let narrow = match self.dtype {
            Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        };
        let of_y = if at.wide { sys::cudaDataType_t::CUDA_R_32F } else { narrow };
        let (alpha, beta) = (1f32, if at.add { 1f32 } else { 0f32 });
        let handle = self.device.cublas_handle();
        // cuBLAS thinks in columns: to it, our rows of y, x and W are columns, and yᵀ = W · xᵀ, W read transposed.
        // SAFETY: the handle is alive, and the matrices have these shapes by the caller's promise.
        unsafe {
            result::gemm_ex(
                *handle.handle(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                out as i32,
                rows as i32,
                in_ as i32,
                (&raw const alpha).cast(),
                at.weight.0 as *const c_void,
                narrow,
                in_ as i32,
                at.x.0 as *const c_void,
                narrow,
                in_ as i32,
                (&raw const beta).cast(),
                at.y.0 as *mut c_void,
                of_y,
                out as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}
