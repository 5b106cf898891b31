//! Limits of a GPU: the two numbers of a roofline, each the mean rate of half a second and more.
//!
//! Compute is a large matrix product in the engine's number format, memory is a copy within the GPU. Passes follow each other without
//! a wait: the clock that a GPU keeps under its power limit is lower than that of its first milliseconds, and real work runs for
//! longer. Sizes grow until a pass takes long enough to be timed from the host.

use std::time::{Duration, Instant};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{Result, Tensor};
use half::{bf16, f16};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::device_slice::DeviceSlice;
use super::gpu::Gpu;
use super::nvml::SmClock;
use super::product::{ProductAt, ProductOut};
use flashjob_cpu::{ClockAround, Limits};
use flashjob_model::Dtype;

/// A pass that takes this long is not told apart from one that is launched and waited for without cost.
const LONG_ENOUGH: Duration = Duration::from_millis(10);

/// Time for which passes of the size that is long enough follow each other: several times what the power limit takes to show.
const SUSTAINED: Duration = Duration::from_millis(600);

/// Passes at most, where they take next to no time.
const MOST_PASSES: usize = 1024;

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
        // Opened before: at the end of the work a clock soon falls.
        let clock = SmClock::open(self.stream().context().ordinal());
        let now = || clock.as_ref().and_then(SmClock::hertz);
        let before = now();
        let flops_per_second = self.product_rate()?;
        let sm_clock_hertz = before.zip(now()).map(|(before, after)| ClockAround { before, after });
        Ok(Limits { flops_per_second, fma_flops_per_second: None, bytes_per_second: self.copy_rate()?, sm_clock_hertz })
    }

    fn product_rate(&self) -> Result<f64> {
        self.sustained_rate(PRODUCT, |size| {
            let (x, y) = (self.random_matrix(size)?, Tensor::zeros((size, size), self.dtype().into(), &self.device())?);
            let pass = move || {
                let (factor, y) = (DeviceSlice::of(&x)?, ProductOut::of(&y)?);
                self.product(size, [size, size], ProductAt { x: factor, weight: factor, y, add: false })
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
        self.sustained_rate(COPY, |bytes| {
            let buffer = || Tensor::zeros(bytes / 4, candle_core::DType::F32, &self.device());
            let (from, to) = (buffer()?, buffer()?);
            let pass = move || {
                let address = |tensor| DeviceSlice::<u8>::of(tensor)?.room(bytes, "a copy");
                let (from, to) = (address(&from)?, address(&to)?);
                // SAFETY: both have so many bytes.
                unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream().cu_stream()) }.w()
            };
            // Each byte is read and written.
            Ok((2.0 * bytes as f64, pass))
        })
    }

    /// The mean of passes that follow each other for [`SUSTAINED`]; `prepare` gives a pass of a size, and its amount of work.
    fn sustained_rate<P: FnMut() -> Result<()>>(
        &self,
        [first, last]: [usize; 2],
        prepare: impl Fn(usize) -> Result<(f64, P)>,
    ) -> Result<f64> {
        let stream = self.stream();
        let mut size = first;
        loop {
            let (amount, mut pass) = prepare(size)?;
            let mut timed = |passes: usize| -> Result<Duration> {
                stream.synchronize().w()?;
                let begun = Instant::now();
                (0..passes).try_for_each(|_| pass())?;
                stream.synchronize().w()?;
                Ok(begun.elapsed())
            };
            // The first time of a size pays for what it loads.
            timed(1)?;
            let one = timed(1)?;
            if one < LONG_ENOUGH && size < last {
                size *= 2;
                continue;
            }
            let passes = SUSTAINED.as_secs_f64() / one.as_secs_f64().max(1e-9);
            let passes = (passes.ceil() as usize).clamp(1, MOST_PASSES);
            let rate = |took: Duration| amount * passes as f64 / took.as_secs_f64().max(1e-9);
            return Ok(rate(timed(passes)?));
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
