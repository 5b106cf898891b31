//! Addresses in a GPU's memory.

use std::ffi::c_void;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{DType, Result, Storage, Tensor, bail};
use half::{bf16, f16};

/// Address in a GPU's memory. It does not keep that memory alive: its holder holds the tensor, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub(super) u64);

impl Address {
    /// The null pointer of C.
    pub const NULL: Address = Address(0);

    /// Address of a tensor's first number.
    ///
    /// # Errors
    /// Numbers that are not on a GPU, do not lie side by side, or are of a type that no kernel takes.
    pub fn of(tensor: &Tensor) -> Result<Address> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor of this operation is not on the GPU") };
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("this operation wants contiguous tensors, not {layout:?}")
        };
        let stream = storage.device.cuda_stream();
        // Nothing is tracked by events (see `Gpu::open`): the guard that comes with an address has nothing to do.
        let (first, bytes) = match storage.dtype() {
            DType::F32 => (storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0, 4),
            DType::F16 => (storage.as_cuda_slice::<f16>()?.device_ptr(&stream).0, 2),
            DType::BF16 => (storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0, 2),
            DType::U32 => (storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0, 4),
            other => bail!("this operation does not take numbers of type {other:?}"),
        };
        Ok(Address(first + (start * bytes) as u64))
    }

    /// For calls in C.
    pub fn pointer(self) -> *mut c_void {
        self.0 as *mut c_void
    }

    /// So many bytes further on.
    pub fn plus(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}
