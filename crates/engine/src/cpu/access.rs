//! Slices behind candle's tensors on a CPU.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};

use flashjob_cpu::{CacheSlice, CacheSliceMut};

/// A tensor that is read while another is written. They must not share memory: that would wait forever.
pub struct Operand<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Operand<'a> {
    /// Holds `tensor` for reading.
    pub fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// Its single-precision numbers, in order.
    pub fn floats(&self) -> Result<&[f32]> {
        floats(self.cpu()?, self.layout)
    }

    /// As keys or values of one layer.
    pub fn cache(&self) -> Result<CacheSlice<'_>> {
        let range = contiguous(self.layout)?;
        Ok(match self.cpu()? {
            CpuStorage::F32(numbers) => CacheSlice::F32(&numbers[range]),
            CpuStorage::BF16(numbers) => CacheSlice::Bf16(&numbers[range]),
            CpuStorage::F16(numbers) => CacheSlice::F16(&numbers[range]),
            other => return unsupported(other),
        })
    }

    fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => bail!("a tensor of this operation is not on the CPU"),
        }
    }
}

/// Single-precision numbers to read.
pub fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        CpuStorage::F32(numbers) => Ok(&numbers[contiguous(layout)?]),
        other => unsupported(other),
    }
}

/// Single-precision numbers to change.
pub fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match storage {
        CpuStorage::F32(numbers) => Ok(&mut numbers[contiguous(layout)?]),
        other => unsupported(other),
    }
}

/// Keys or values of one layer, to change.
pub fn cache_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<CacheSliceMut<'a>> {
    let range = contiguous(layout)?;
    Ok(match storage {
        CpuStorage::F32(numbers) => CacheSliceMut::F32(&mut numbers[range]),
        CpuStorage::BF16(numbers) => CacheSliceMut::Bf16(&mut numbers[range]),
        CpuStorage::F16(numbers) => CacheSliceMut::F16(&mut numbers[range]),
        other => return unsupported(other),
    })
}

/// Runs `body` with exclusive access to `tensor`: for operations that change more than one tensor.
pub fn change(
    tensor: &Tensor,
    name: &'static str,
    body: impl FnOnce(&mut CpuStorage, &Layout) -> Result<()>,
) -> Result<()> {
    // candle changes one tensor an operation: others are changed by operations nested in it.
    tensor.inplace_op1(&Change { name, body: Cell::new(Some(body)) })
}

struct Change<F> {
    name: &'static str,
    body: Cell<Option<F>>,
}

impl<F: FnOnce(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.body.take().map_or(Ok(()), |body| body(storage, layout))
    }
}

fn contiguous(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("this operation wants contiguous tensors, not {layout:?}"),
    }
}

fn unsupported<T>(storage: &CpuStorage) -> Result<T> {
    use candle_core::backend::BackendStorage;
    bail!("this operation does not take numbers of type {:?}", storage.dtype())
}
