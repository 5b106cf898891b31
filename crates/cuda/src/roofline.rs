//! Limits of a GPU: the two numbers of a roofline, measured in well under a second.
//!
//! Compute is a large matrix product in the engine's number format, memory is a copy within the GPU; of each the best of several
//! passes counts. Sizes grow until a pass takes long enough to be timed from the host.

use std::time::{Duration, Instant};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{Result, Tensor};
use half::{bf16, f16};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::address::Address;
use super::gpu::Gpu;
use super::product::ProductAt;
use flashjob_cpu::Limits;
use flashjob_model::Dtype;

/// A pass that takes this long is not told apart from one that is launched and waited for without cost.
const LONG_ENOUGH: Duration = Duration::from_millis(10);

/// Passes of the size that is long enough.
const PASSES: usize = 8;

/// Rows, columns and depth of the first product, and of the last: 256 MiB in 16 bits, of a matrix by itself.
const PRODUCT: [usize; 2] = [128, 8192];

/// Bytes of the first copy, and of the last: far above any cache.
const COPY: [usize; 2] = [1 << 20, 1 << 30];

impl Gpu {
    /// Measures the limits of this GPU.
    ///
    /// # Errors
    /// The driver's own error, too little memory among others.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits {
            flops_per_second: self.product_rate()?,
            fma_flops_per_second: None,
            bytes_per_second: self.copy_rate()?,
        })
    }

    fn product_rate(&self) -> Result<f64> {
        self.best_rate(PRODUCT, |size| {
            let (x, y) = (self.random_matrix(size)?, Tensor::zeros((size, size), self.dtype().into(), &self.device())?);
            let address = |tensor| Address::of(tensor);
            let at = ProductAt { x: address(&x)?, weight: address(&x)?, y: address(&y)?, wide: false, add: false };
            let pass = move || {
                let _alive = (&x, &y);
                self.product(size, [size, size], at)
            };
            Ok((2.0 * (size as f64).powi(3), pass))
        })
    }

    /// `[size, size]`, drawn at random: a product of zeros takes less power, and clocks stay higher than any work keeps them.
    fn random_matrix(&self, size: usize) -> Result<Tensor> {
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        // A prime number of them, over and over: no two rows are alike.
        let drawn = (0..65_537).map(|_| generator.random_range(-1.0..1.0));
        let (count, shape, device) = (size * size, (size, size), self.device());
        match self.dtype() {
            Dtype::F16 => Tensor::from_vec(over_and_over(drawn.map(f16::from_f32), count), shape, &device),
            Dtype::Bf16 => Tensor::from_vec(over_and_over(drawn.map(bf16::from_f32), count), shape, &device),
            Dtype::F32 => Tensor::from_vec(over_and_over(drawn, count), shape, &device),
        }
    }

    fn copy_rate(&self) -> Result<f64> {
        self.best_rate(COPY, |bytes| {
            let buffer = || Tensor::zeros(bytes / 4, candle_core::DType::F32, &self.device());
            let (from, to) = (buffer()?, buffer()?);
            let pass = move || {
                let (from, to) = (Address::of(&from)?, Address::of(&to)?);
                // SAFETY: both have so many bytes.
                unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream().cu_stream()) }.w()
            };
            // Each byte is read and written.
            Ok((2.0 * bytes as f64, pass))
        })
    }

    /// The best of [`PASSES`] passes; `prepare` gives a pass of a size, and what it does.
    fn best_rate<P: FnMut() -> Result<()>>(
        &self,
        [first, last]: [usize; 2],
        prepare: impl Fn(usize) -> Result<(f64, P)>,
    ) -> Result<f64> {
        let stream = self.stream();
        let mut size = first;
        loop {
            let (amount, mut pass) = prepare(size)?;
            let mut timed = || -> Result<Duration> {
                stream.synchronize().w()?;
                let begun = Instant::now();
                pass()?;
                stream.synchronize().w()?;
                Ok(begun.elapsed())
            };
            // The first time of a size pays for what it loads.
            timed()?;
            let mut best = timed()?;
            if best < LONG_ENOUGH && size < last {
                size *= 2;
                continue;
            }
            for _ in 1..PASSES {
                best = best.min(timed()?);
            }
            return Ok(amount / best.as_secs_f64().max(1e-9));
        }
    }
}

/// The first `count` of `numbers` and their repetitions.
fn over_and_over<T: Copy>(numbers: impl Iterator<Item = T>, count: usize) -> Vec<T> {
    let numbers: Vec<T> = numbers.collect();
    let mut all = numbers.repeat(count.div_ceil(numbers.len()));
    all.truncate(count);
    all
}
