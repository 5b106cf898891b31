//! What this machine can do at most.

use std::time::{Duration, Instant};

use super::{PackedMatrix, Pool, WeightSlice, matmul};

/// Measured limits of the processors that a pool uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// f32 floating-point operations (a multiply-add is two).
    pub flops_per_second: f64,
    /// Bytes read from memory.
    pub bytes_per_second: f64,
}

/// Measures in under 2 s.
pub fn measure_limits(pool: &Pool) -> Limits {
    let n = 128;
    let w = PackedMatrix::pack(pool, WeightSlice::F32(&vec![0.5; n * n]), n, n);
    let (x, mut y) = (vec![0.5; n * n], vec![0.0; n * n]);
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let begin = Instant::now();
        matmul(pool, &x, n, &w, None, &mut y);
        best = best.min(begin.elapsed());
    }
    let memory = vec![1.0_f32; 16 << 20];
    let begin = Instant::now();
    let sum: f32 = memory.iter().sum();
    let read = begin.elapsed();
    std::hint::black_box((sum, y));
    Limits {
        flops_per_second: 2.0 * (n * n * n) as f64 / best.as_secs_f64(),
        bytes_per_second: (memory.len() * 4) as f64 / read.as_secs_f64(),
    }
}
