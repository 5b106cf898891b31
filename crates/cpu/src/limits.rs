//! Limits of this machine: the two numbers of a roofline, measured in less than a second.
//!
//! Compute is a large product of f32 matrices, memory is reading (or STREAM's triad, whichever is faster) over more
//! than the caches hold; of each the best of several short passes counts, since others share the machine: one that fits between
//! two interruptions is enough.

use std::iter::Sum;
use std::time::{Duration, Instant};

use super::memory::{AlignedBytes, Parts};
use super::simd::{Kernel, Simd, dispatch};
use super::{PackedMatrix, Pool, WeightSlice, matmul};

/// Time that one rate is measured for, but for [`LEAST_PASSES`].
#[derive(Clone, Copy)]
struct Patience {
    /// At least, also where passes confirm each other.
    shortest: Duration,
    longest: Duration,
}

/// Patience for computing: at least what a processor's clock takes to rise, several times over.
const COMPUTING: Patience = Patience { shortest: Duration::from_millis(30), longest: Duration::from_millis(150) };

/// Patience for memory, which other processors of the machine use as well: passes confirm each other for tens of milliseconds at less than
/// half of its rate.
const MEMORY: Patience = Patience { shortest: Duration::from_millis(150), longest: Duration::from_millis(200) };

/// Passes that are made whatever they take.
const LEAST_PASSES: usize = 3;

/// So many passes as fast as the best one, within [`ALIKE`], show that nothing better is to come.
const CONFIRMING_PASSES: usize = 4;

/// Factor by which a pass may be longer than the best one and still confirms it.
const ALIKE: f64 = 1.02;

/// Bytes of the memory that is read, where there are so many: above any processor's cache share.
const STREAM_BYTES: usize = 256 << 20;

/// Multiple of the largest cache that is read at least, where there is more memory.
const CACHES_READ: usize = 4;

/// The largest cache of a processor that does not say.
const UNKNOWN_CACHE_BYTES: u64 = 32 << 20;

/// Floats that a thread takes at a time.
const STREAM_PART: usize = 1 << 20;

/// Rows and depth of the large product.
const PRODUCT: (usize, usize) = (192, 1024);

/// Its columns for each thread: enough for a thread to be busy for a millisecond or more.
const COLUMNS_PER_THREAD: usize = 512;

/// Its columns at most: 64 MiB of a matrix.
const MOST_COLUMNS: usize = 16 << 10;

/// Measured limits of what an engine computes with.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Limits {
    /// Floating-point operations (a multiply-add is two) of a large matrix product: in f32 on a CPU.
    pub flops_per_second: f64,
    /// The same of multiply-adds in registers alone, which no product can exceed; of a CPU only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fma_flops_per_second: Option<f64>,
    /// Bytes moved between memory and processors.
    pub bytes_per_second: f64,
    /// Clock of the multiprocessors around the product, of the first GPU; of GPUs only, where NVML says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_hertz: Option<ClockAround>,
}

/// A clock around a measurement, in hertz: one that is much lower afterwards was throttled meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ClockAround {
    /// Just before it.
    pub before: f64,
    /// When it has ended.
    pub after: f64,
}

impl Limits {
    /// Limits of so many of the same.
    #[must_use]
    pub fn times(self, count: usize) -> Self {
        let times = |rate: f64| rate * count as f64;
        Self {
            flops_per_second: times(self.flops_per_second),
            fma_flops_per_second: self.fma_flops_per_second.map(times),
            bytes_per_second: times(self.bytes_per_second),
            sm_clock_hertz: self.sm_clock_hertz,
        }
    }
}

/// Limits of several together.
impl Sum for Limits {
    fn sum<I: Iterator<Item = Self>>(limits: I) -> Self {
        let none = Self {
            flops_per_second: 0.0,
            fma_flops_per_second: Some(0.0),
            bytes_per_second: 0.0,
            sm_clock_hertz: None,
        };
        let all = limits.fold(none, |sum, one| Self {
            flops_per_second: sum.flops_per_second + one.flops_per_second,
            fma_flops_per_second: sum.fma_flops_per_second.zip(one.fma_flops_per_second).map(|(sum, one)| sum + one),
            bytes_per_second: sum.bytes_per_second + one.bytes_per_second,
            // That of the first stands for all: they are of one kind.
            sm_clock_hertz: sum.sm_clock_hertz.or(one.sm_clock_hertz),
        });
        Self { fma_flops_per_second: all.fma_flops_per_second.filter(|&rate| rate > 0.0), ..all }
    }
}

/// Too little memory to measure limits: caches would be measured in the place of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} MiB of memory are free, and half of it is less than the {} MiB, twice the largest cache, that memory's rate is measured \
     with; give the container more memory",
    free_bytes >> 20, needed_bytes >> 20
)]
pub struct TooLittleMemory {
    free_bytes: u64,
    needed_bytes: u64,
}

/// Measures the limits with all threads of `pool`, in about 0.7 s. Takes at most half of `free_bytes` for it, where these
/// are known.
///
/// # Errors
/// That is too little.
pub fn measure_limits(pool: &Pool, free_bytes: Option<u64>) -> Result<Limits, TooLittleMemory> {
    let stream_bytes = stream_bytes(free_bytes, largest_cache_bytes().unwrap_or(UNKNOWN_CACHE_BYTES))?;
    Ok(Limits {
        fma_flops_per_second: Some(multiply_add_rate(pool)),
        flops_per_second: product_rate(pool),
        bytes_per_second: memory_rate(pool, stream_bytes / size_of::<f32>()),
        sm_clock_hertz: None,
    })
}

/// Bytes that are read: whole parts, in what may be taken, and more than the caches hold.
fn stream_bytes(free_bytes: Option<u64>, cache_bytes: u64) -> Result<usize, TooLittleMemory> {
    let part_bytes = STREAM_PART * size_of::<f32>();
    let needed_bytes = cache_bytes.saturating_mul(2).min(STREAM_BYTES as u64);
    let enough = usize::try_from(cache_bytes).unwrap_or(usize::MAX).saturating_mul(CACHES_READ);
    let enough = enough.clamp(STREAM_BYTES / 4, STREAM_BYTES) / part_bytes * part_bytes;
    let Some(free_bytes) = free_bytes else { return Ok(enough) };
    let affordable = usize::try_from(free_bytes / 2).unwrap_or(usize::MAX).min(enough) / part_bytes * part_bytes;
    if (affordable as u64) < needed_bytes.max(part_bytes as u64) {
        return Err(TooLittleMemory { free_bytes, needed_bytes });
    }
    Ok(affordable)
}

/// Largest cache of the first processor, as the kernel has it; `None` where it does not say.
fn largest_cache_bytes() -> Option<u64> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.filter_map(|cache| {
        let text = std::fs::read_to_string(cache.ok()?.path().join("size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
    });
    sizes.max()
}

/// `amount` over the shortest time that `pass` took.
fn best_rate(amount: f64, patience: Patience, mut pass: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut passes = Passes::default();
    while !passes.are_enough(begin.elapsed(), patience) {
        let start = Instant::now();
        pass();
        passes.add(start.elapsed().as_secs_f64());
    }
    amount / passes.best.max(1e-9)
}

/// Passes so far, in seconds.
struct Passes {
    count: usize,
    best: f64,
    /// As fast as the best one.
    confirming: usize,
}

impl Default for Passes {
    fn default() -> Self {
        Self { count: 0, best: f64::INFINITY, confirming: 0 }
    }
}

impl Passes {
    fn add(&mut self, seconds: f64) {
        self.count += 1;
        if seconds * ALIKE < self.best {
            self.confirming = 0;
        } else if seconds <= self.best * ALIKE {
            self.confirming += 1;
        }
        self.best = self.best.min(seconds);
    }

    fn are_enough(&self, elapsed: Duration, Patience { shortest, longest }: Patience) -> bool {
        let settled = self.confirming >= CONFIRMING_PASSES && elapsed >= shortest;
        self.count >= LEAST_PASSES && (settled || elapsed >= longest)
    }
}

fn product_rate(pool: &Pool) -> f64 {
    let (rows, in_) = PRODUCT;
    let out = (COLUMNS_PER_THREAD * pool.threads()).min(MOST_COLUMNS);
    let w = PackedMatrix::pack(pool, WeightSlice::F32(&vec![0.5; in_ * out]), out, in_);
    let (x, mut y) = (vec![0.25; rows * in_], vec![0.0; rows * out]);
    best_rate(2.0 * (rows * in_ * out) as f64, COMPUTING, || matmul(pool, &x, rows, &w, None, &mut y))
}

/// Chains of multiply-adds at a time: enough to hide their latency, few enough for 16 registers.
const CHAINS: usize = 12;

/// Rounds of one multiply-add a chain that a task does: few enough that a late thread leaves little to the others.
const ROUNDS: usize = 1 << 13;

/// Such tasks for each thread.
const TASKS_PER_THREAD: usize = 64;

fn multiply_add_rate(pool: &Pool) -> f64 {
    let mut lanes = 0;
    dispatch(pool.available(), CountLanes(&mut lanes));
    let tasks = TASKS_PER_THREAD * pool.threads();
    let flops = 2 * CHAINS * ROUNDS * lanes * tasks;
    best_rate(flops as f64, COMPUTING, || pool.run(tasks, |_| dispatch(pool.available(), MultiplyAdd)))
}

struct CountLanes<'a>(&'a mut usize);

impl Kernel for CountLanes<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        *self.0 = S::LANES;
    }
}

struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat(std::hint::black_box(0.5)), simd.splat(std::hint::black_box(0.25)));
        let mut sums = [a; CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.fma(*sum, a, b);
            }
        }
        for sum in sums {
            std::hint::black_box(simd.sum(sum));
        }
    }
}

fn memory_rate(pool: &Pool, count: usize) -> f64 {
    let bytes = count * size_of::<f32>();
    let mut memory = AlignedBytes::zeroed(bytes);
    // SAFETY: zeroed floats, owned by `memory`, which outlives the slice.
    let floats = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<f32>(), count) };
    let parts = Parts::new(floats);
    let tasks = count / STREAM_PART;
    // Pages are there before anything is measured.
    // SAFETY: each task takes a part of its own.
    pool.run(tasks, |task| unsafe { nth(&parts, count / tasks, task) }.fill(1.0));
    let read = best_rate(bytes as f64, MEMORY, || {
        // SAFETY: each task takes a part of its own.
        pool.run(tasks, |task| dispatch(pool.available(), Read(unsafe { nth(&parts, count / tasks, task) })));
    });
    // STREAM's count: the line that is written is not counted as read, although it is.
    let thirds = tasks * 3;
    let triad = best_rate((count / thirds * tasks * 3 * size_of::<f32>()) as f64, MEMORY, || {
        pool.run(tasks, |task| {
            // SAFETY: each task takes three parts of its own.
            let [a, b, c] = [0, 1, 2].map(|i| unsafe { nth(&parts, count / thirds, i * tasks + task) });
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = *b + 0.5 * *c;
            }
        });
    });
    read.max(triad)
}

/// Part `index` of those that are `len` long.
///
/// # Safety
/// As [`Parts::part`].
#[allow(clippy::mut_from_ref)]
unsafe fn nth<'a>(parts: &'a Parts<'_, f32>, len: usize, index: usize) -> &'a mut [f32] {
    // SAFETY: the caller's.
    unsafe { parts.part(index * len..(index + 1) * len) }
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut sums = [simd.splat(0.0); 8];
        for chunk in self.0.chunks_exact(8 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside the chunk.
                *sum = simd.add(*sum, unsafe { simd.load(chunk.as_ptr().add(i * S::LANES)) });
            }
        }
        for sum in sums {
            std::hint::black_box(simd.sum(sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn limits_of_several_add_up_as_far_as_all_have_them() {
        let gpu = |flops_per_second| Limits {
            flops_per_second,
            fma_flops_per_second: None,
            bytes_per_second: 2.0,
            sm_clock_hertz: None,
        };
        let cpu = Limits {
            flops_per_second: 3.0,
            fma_flops_per_second: Some(4.0),
            bytes_per_second: 5.0,
            sm_clock_hertz: None,
        };
        assert_eq!([gpu(1.0), gpu(1.5)].into_iter().sum::<Limits>(), Limits { bytes_per_second: 4.0, ..gpu(2.5) });
        assert_eq!([cpu; 3].into_iter().sum::<Limits>(), cpu.times(3));
        assert_eq!(std::iter::empty::<Limits>().sum::<Limits>(), Limits { bytes_per_second: 0.0, ..gpu(0.0) });
    }

    #[test]
    fn buffers_are_larger_than_caches_and_fit_into_what_is_free() {
        for (free, cache, mib) in [
            (None, 32, Some(128)),
            (Some(16 << 10), 32, Some(128)),
            (Some(16 << 10), 96, Some(256)),
            (Some(16 << 10), 1, Some(64)),
            (Some(512), 32, Some(128)),
            (Some(250), 32, Some(124)),
            (Some(128), 32, Some(64)),
            (Some(127), 32, None),
            (Some(0), 0, None),
            (Some(10), 1, Some(4)),
            // Of a cache as large as that the 256 MiB are as good as it gets.
            (Some(600), 400, Some(256)),
            (Some(500), 400, None),
        ] {
            let bytes = stream_bytes(free.map(|mib| mib * MIB), cache * MIB);
            assert_eq!(bytes.ok().map(|bytes| bytes as u64), mib.map(|mib| mib * MIB), "{free:?} {cache}");
        }
        assert_eq!(stream_bytes(None, u64::MAX).unwrap() as u64, 256 * MIB);
        let error = stream_bytes(Some(100 * MIB), 32 * MIB).unwrap_err().to_string();
        assert!(error.contains("100 MiB of memory are free") && error.contains("64 MiB"), "{error}");
    }

    #[test]
    fn passes_end_when_the_best_is_confirmed_or_time_is_over() {
        let after = |seconds: &[f64], elapsed: Duration| {
            let mut passes = Passes::default();
            seconds.iter().for_each(|&seconds| passes.add(seconds));
            (passes.best, passes.are_enough(elapsed, COMPUTING))
        };
        // The first of a level confirms nothing.
        assert_eq!(after(&[2.0, 1.0, 1.01, 1.0, 1.02], COMPUTING.shortest), (1.0, false));
        assert_eq!(after(&[2.0, 1.0, 1.01, 1.0, 1.02, 0.99], COMPUTING.shortest), (0.99, true));
        assert_eq!(after(&[1.0; 9], COMPUTING.shortest / 2), (1.0, false));
        // Interrupted ones neither confirm nor contradict.
        assert_eq!(after(&[1.0, 5.0, 1.0, 7.0, 1.0, 1.0, 1.0], COMPUTING.shortest), (1.0, true));
        assert_eq!(after(&[1.0, 5.0, 7.0, 9.0], COMPUTING.shortest), (1.0, false));
        assert_eq!(after(&[1.0, 5.0, 7.0, 9.0], COMPUTING.longest), (1.0, true));
        assert_eq!(after(&[1.0, 5.0], COMPUTING.longest), (1.0, false));
    }
}
