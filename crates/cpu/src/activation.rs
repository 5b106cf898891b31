//! The gate of a feed-forward layer.

use super::Pool;
use super::exp::gate;
use super::memory::Parts;
use super::simd::{Kernel, Simd, dispatch};

/// Outputs below which a second thread is not worth waking.
const ENTRIES_PER_TASK: usize = 4 << 10;

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// `out = activation(gate) * up`.
///
/// `gate_up` is `[rows, 2 * n]`, in each row first the gate, then up; `out` is `[rows, n]`.
///
/// # Panics
/// If lengths do not match.
pub fn gated_activation(pool: &Pool, gate_up: &[f32], n: usize, activation: GateActivation, out: &mut [f32]) {
    assert!(n > 0 && out.len().is_multiple_of(n), "{} entries in rows of {n}", out.len());
    assert_eq!(gate_up.len(), 2 * out.len(), "gate and up for {} outputs", out.len());
    let (rows, out) = (out.len() / n, Parts::new(out));
    pool.run_ranges(rows, ENTRIES_PER_TASK / n, |rows| {
        // SAFETY: ranges of rows do not overlap.
        let out = unsafe { out.part(rows.start * n..rows.end * n) };
        let gate_up = &gate_up[rows.start * 2 * n..rows.end * 2 * n];
        match activation {
            GateActivation::Silu => dispatch(pool.available(), Gate::<false> { gate_up, n, out }),
            GateActivation::GeluTanh => dispatch(pool.available(), Gate::<true> { gate_up, n, out }),
        }
    });
}

struct Gate<'a, const GELU: bool> {
    gate_up: &'a [f32],
    n: usize,
    out: &'a mut [f32],
}

impl<const GELU: bool> Kernel for Gate<'_, GELU> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n = self.n;
        for (row, out) in self.gate_up.chunks_exact(2 * n).zip(self.out.chunks_exact_mut(n)) {
            for i in (0..n).step_by(S::LANES) {
                let (x, up) = (row[i..].as_ptr(), row[n + i..].as_ptr());
                let to = out[i..].as_mut_ptr();
                // SAFETY: `n - i` entries are left of each.
                unsafe {
                    if n - i >= S::LANES {
                        simd.store(to, gated::<S, GELU>(simd, simd.load(x), simd.load(up)));
                    } else {
                        let left = n - i;
                        let (x, up) = (simd.load_first(x, left), simd.load_first(up, left));
                        simd.store_first(to, gated::<S, GELU>(simd, x, up), left);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn gated<S: Simd, const GELU: bool>(simd: S, x: S::V, up: S::V) -> S::V {
    let slope = if GELU {
        // ½ x (1 + tanh u) = x / (1 + e^(−2u)) with u = √(2/π) (x + 0.044715 x³).
        const TWICE_ROOT: f32 = 1.595_769;
        let square = simd.mul(x, x);
        simd.mul(x, simd.fma(square, simd.splat(TWICE_ROOT * 0.044_715), simd.splat(TWICE_ROOT)))
    } else {
        x
    };
    simd.mul(gate(simd, x, slope), up)
}
