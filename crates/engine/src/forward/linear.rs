//! Matrix products on every device: `y = x · Wᵀ + bias`, wherever the weights live.
//!
//! On a CPU weights are packed once and what they were packed from is released. This file knows nothing of what a
//! product is for.

#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::{CpuStorage, Device as CandleDevice, InplaceOp2, Layout, Result, Tensor};

use crate::forward::device::Device;
use crate::forward::ops::access::{Operand, floats, floats_mut};
use flashjob_cpu::{PackedMatrix, matmul};

/// Weights `[out, in]` and an optional bias `[out]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// A matrix in the layout of its device.
pub enum Weight {
    /// For the CPU's kernels.
    Packed(PackedMatrix),
    /// Row-major on a GPU.
    #[cfg(feature = "cuda")]
    OnDevice(Tensor),
}

impl Linear {
    /// `weight` with `biases`, which are on the host, stacked as the parts of its rows are, or none.
    pub fn new(weight: Weight, biases: &[Tensor], device: &CandleDevice) -> Result<Self> {
        let stacked = if biases.is_empty() { None } else { Some(Tensor::cat(biases, 0)?) };
        Ok(Self { weight, bias: stacked.map(|bias| bias.to_device(device)).transpose()? })
    }

    /// From `[rows, in]` into `[rows, out]`, which is overwritten.
    pub fn forward(&self, device: &Device, x: &Tensor, y: &Tensor) -> Result<()> {
        y.inplace_op2(x, &Product { device, linear: self })
    }

    /// The matrix as it is packed, for lookups of rows.
    pub fn packed(&self) -> Result<&PackedMatrix> {
        match &self.weight {
            Weight::Packed(packed) => Ok(packed),
            #[cfg(feature = "cuda")]
            Weight::OnDevice(_) => bail!("these weights are on a GPU, and their rank computes on the CPU"),
        }
    }

    /// The matrix on a GPU, row by row.
    #[cfg(feature = "cuda")]
    pub fn address(&self) -> Result<crate::cuda::address::Address> {
        match &self.weight {
            Weight::Packed(_) => bail!("these weights are packed for the CPU, and their rank computes on a GPU"),
            Weight::OnDevice(tensor) => Operand::of(tensor).address(),
        }
    }

    /// Rows of the matrix.
    pub fn out(&self) -> usize {
        match &self.weight {
            Weight::Packed(packed) => packed.out(),
            #[cfg(feature = "cuda")]
            Weight::OnDevice(tensor) => tensor.dims()[0],
        }
    }

    /// Bytes of the matrix and its bias.
    pub fn bytes(&self) -> u64 {
        let weight = match &self.weight {
            Weight::Packed(packed) => packed.bytes(),
            #[cfg(feature = "cuda")]
            Weight::OnDevice(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        };
        let bias = self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>());
        (weight + bias) as u64
    }
}

struct Product<'a> {
    device: &'a Device,
    linear: &'a Linear,
}

impl InplaceOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, y_layout: &Layout, x: &CpuStorage, x_layout: &Layout) -> Result<()> {
        let bias = self.linear.bias.as_ref().map(Operand::of);
        let bias = bias.as_ref().map(Operand::floats).transpose()?;
        let y = floats_mut(y, y_layout)?;
        let rows = y.len().checked_div(self.linear.out()).unwrap_or(0);
        matmul(self.device.pool(), floats(x, x_layout)?, rows, self.linear.packed()?, bias, y);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &mut candle_core::CudaStorage,
        y_layout: &Layout,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;

        use crate::cuda::address::Address;
        use crate::cuda::product::ProductAt;
        let gpu = self.device.gpu()?;
        let ((rows, out), (_, in_)) = (y_layout.shape().dims2()?, x_layout.shape().dims2()?);
        let wide = y.dtype() == candle_core::DType::F32;
        let (x, y) = (Address::of(x, x_layout)?, Address::of(y, y_layout)?);
        // cuBLAS adds to what is there: rows begin as copies of the bias.
        if let Some(bias) = &self.linear.bias {
            gpu.fill_rows(Operand::of(bias).address()?, y, [rows, out])?;
        }
        let add = self.linear.bias.is_some();
        gpu.product(rows, [out, in_], ProductAt { x, weight: self.linear.address()?, y, wide, add })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flashjob_cpu::{Pool, WeightSlice};

    #[test]
    fn biases_are_stacked_in_order() {
        let tensor = |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &CandleDevice::Cpu).unwrap();
        let device = Device::cpu(Arc::new(Pool::new(1)));
        let biases = [tensor(&[10.0, 20.0], &[2]), tensor(&[30.0], &[1])];
        let x = tensor(&[1.0, 1.0, -1.0, 2.0], &[2, 2]);
        let y = Tensor::zeros((2, 3), candle_core::DType::F32, &CandleDevice::Cpu).unwrap();
        for (biases, expected) in
            [(&biases[..], [[13.0, 27.0, 41.0], [13.0, 25.0, 37.0]]), (&[], [[3.0, 7.0, 11.0], [3.0, 5.0, 7.0]])]
        {
            let weight = PackedMatrix::pack(device.pool(), WeightSlice::F32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 3, 2);
            let linear = Linear::new(Weight::Packed(weight), biases, &CandleDevice::Cpu).unwrap();
            assert_eq!(linear.out(), 3);
            linear.forward(&device, &x, &y).unwrap();
            assert_eq!(y.to_vec2::<f32>().unwrap(), expected);
        }
    }
}
