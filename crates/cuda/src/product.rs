//! Matrix products by cuBLAS, from and into memory that is there already.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Result, Tensor};

use super::device_slice::{Bits16, DeviceSlice};
use super::gpu::Gpu;
use super::recording::Queued;
use flashjob_model::Dtype;

/// `y = x · Wᵀ`, or `y += x · Wᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct ProductAt<'a> {
    /// `[rows, in]`.
    pub x: DeviceSlice<'a, Bits16>,
    /// `[out, in]`.
    pub weight: DeviceSlice<'a, Bits16>,
    /// `[rows, out]`.
    pub y: ProductOut<'a>,
    /// True where `y` is added to.
    pub add: bool,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub enum ProductOut<'a> {
    /// Single precision.
    Wide(DeviceSlice<'a, f32>),
    /// The format of the factors.
    Narrow(DeviceSlice<'a, Bits16>),
}

impl<'a> ProductOut<'a> {
    /// All numbers of a tensor.
    ///
    /// # Errors
    /// As [`DeviceSlice::of`].
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F32 => ProductOut::Wide(DeviceSlice::of(tensor)?),
            _ => ProductOut::Narrow(DeviceSlice::of(tensor)?),
        })
    }

    /// All numbers of a tensor, and those that lie behind them in the same allocation.
    ///
    /// # Errors
    /// As [`DeviceSlice::of`].
    pub fn with_what_follows(tensor: &'a Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F32 => ProductOut::Wide(DeviceSlice::with_what_follows(tensor)?),
            _ => ProductOut::Narrow(DeviceSlice::with_what_follows(tensor)?),
        })
    }

    /// The same from number `index` on.
    ///
    /// # Errors
    /// An index beyond the end.
    pub fn from(self, index: usize) -> Result<Self> {
        Ok(match self {
            ProductOut::Wide(y) => ProductOut::Wide(y.from(index)?),
            ProductOut::Narrow(y) => ProductOut::Narrow(y.from(index)?),
        })
    }
}

impl Gpu {
    /// Queues a product of `rows` rows; sums are single precision, also those of parts (see [`Gpu::open`]).
    ///
    /// # Errors
    /// Matrices that are smaller, and the error of cuBLAS.
    pub fn product(&self, rows: usize, [out, in_]: [usize; 2], at: ProductAt) -> Result<()> {
        if rows == 0 || out == 0 {
            return Ok(());
        }
        let narrow = match self.dtype {
            Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        };
        let (x, weight) = (at.x.pointer(rows * in_, "a factor")?, at.weight.pointer(out * in_, "weights")?);
        let (y, of_y) = match at.y {
            ProductOut::Wide(y) => (y.pointer(rows * out, "a product")?, sys::cudaDataType_t::CUDA_R_32F),
            ProductOut::Narrow(y) => (y.pointer(rows * out, "a product")?, narrow),
        };
        let (alpha, beta) = (1f32, if at.add { 1f32 } else { 0f32 });
        let handle = self.device.cublas_handle();
        // cuBLAS thinks in columns: to it, our rows of y, x and W are columns, and yᵀ = W · xᵀ, W read transposed.
        // SAFETY: the handle is alive, and so large are the matrices.
        let queue = || unsafe {
            result::gemm_ex(
                *handle.handle(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                out as i32,
                rows as i32,
                in_ as i32,
                (&raw const alpha).cast(),
                weight,
                narrow,
                in_ as i32,
                x,
                narrow,
                in_ as i32,
                (&raw const beta).cast(),
                y,
                of_y,
                out as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
            .w()
        };
        self.queue("a product", Queued::Library, queue)
    }
}
