//! Zeros on the host as kernels like them: they begin at a cache line, so that no vector lies in two, are in huge pages
//! where they are many, and take no memory before they are touched.

use bytemuck::Zeroable;
use candle_core::{Device as CandleDevice, Error, Result, Tensor, WithDType};
use half::{bf16, f16};

use flashjob_cpu::{LINE_BYTES, untouched_zeros};
use flashjob_model::Dtype;

/// `[count]`.
///
/// # Errors
/// Memory that the system refuses.
pub fn zeros(count: usize, dtype: Dtype) -> Result<Tensor> {
    match dtype {
        Dtype::F32 => tensor::<f32>(count),
        Dtype::Bf16 => tensor::<bf16>(count),
        Dtype::F16 => tensor::<f16>(count),
    }
}

fn tensor<T: WithDType + Zeroable>(count: usize) -> Result<Tensor> {
    // candle allocates by itself only what malloc aligns to: a line more leaves room to move the beginning.
    let len = count + LINE_BYTES / size_of::<T>();
    let numbers = untouched_zeros::<T>(len);
    let numbers = numbers.ok_or_else(|| Error::Msg(format!("the system refuses memory for {len} numbers")))?;
    let first = numbers.as_ptr().align_offset(LINE_BYTES);
    Tensor::from_vec(numbers, len, &CandleDevice::Cpu)?.narrow(0, first, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::access::Operand;
    use flashjob_cpu::CacheSlice;

    #[test]
    fn zeros_begin_at_a_line_whatever_their_number() {
        for count in [1, 7, 1000, 3 << 20] {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let tensor = zeros(count, dtype).unwrap();
                let operand = Operand::of(&tensor);
                let (start, zero, len) = match operand.cache().unwrap() {
                    CacheSlice::F32(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == 0.0), x.len()),
                    CacheSlice::Bf16(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == bf16::ZERO), x.len()),
                    CacheSlice::F16(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == f16::ZERO), x.len()),
                };
                assert_eq!((start % LINE_BYTES, zero, len), (0, true, count), "{count} of {dtype:?}");
            }
        }
    }

    #[test]
    fn more_than_any_machine_has_is_an_error() {
        assert!(zeros(usize::MAX / 8, Dtype::F32).is_err());
    }
}
