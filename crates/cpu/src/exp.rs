//! e^x, and what is made of it, on vectors.

use super::simd::Simd;

/// ln 2 in two parts: the first has so few bits that its product with a whole number below 2⁸ is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// (e^r − 1 − r) / r² on −½ ln 2 ..= ½ ln 2: the coefficients of Cephes' `expf` (Stephen L. Moshier, netlib.org/cephes).
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Below this e^x is nearer to 0 than to the smallest subnormal.
const SMALLEST: f32 = -104.0;

/// Above this e^x is infinite.
const LARGEST: f32 = 89.0;

/// e^x within 2 units in the last place (a test goes through the range), exactly 0 for −∞ and ∞ for ∞; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    // In this order NaN passes both.
    let x = simd.min(simd.splat(LARGEST), simd.max(simd.splat(SMALLEST), x));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-LN_2[0]), x);
    let r = simd.fma(n, simd.splat(-LN_2[1]), r);
    let mut p = simd.splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = simd.fma(p, r, simd.splat(*coefficient));
    }
    let e = simd.add(simd.fma(p, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale(e, n)
}

/// x / (1 + e^(−slope)): with `slope` = x it is SiLU.
#[inline(always)]
pub(super) fn gate<S: Simd>(simd: S, x: S::V, slope: S::V) -> S::V {
    let e = exp(simd, simd.sub(simd.splat(0.0), slope));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// tanh x, within 1.5e-7.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // With e = e^(−2|x|), the absolute value is (1 − e) / (1 + e), and at most |x|: so clamping gives it x's sign.
    let zero = simd.splat(0.0);
    let one = simd.splat(1.0);
    let below = simd.min(x, simd.sub(zero, x));
    let e = exp(simd, simd.add(below, below));
    let size = simd.div(simd.sub(one, e), simd.add(one, e));
    simd.min(simd.max(x, simd.sub(zero, size)), size)
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::isa::Available;
    use super::super::simd::{Kernel, dispatch};
    use super::*;

    struct Each<'a>(&'a [f32], &'a mut [f32], bool);

    impl Kernel for Each<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                // SAFETY: as many entries as each chunk has.
                unsafe {
                    let v = simd.load_first(x.as_ptr(), x.len());
                    let v = if self.2 { tanh(simd, v) } else { exp(simd, v) };
                    simd.store_first(y.as_mut_ptr(), v, x.len());
                }
            }
        }
    }

    fn on_every_isa(x: &[f32], tanh: bool, mut check: impl FnMut(&[f32])) {
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            dispatch(Available::new(isa), Each(x, &mut y, tanh));
            check(&y);
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (0..400_000).map(|i| -105.0 + i as f32 * 4.9e-4).collect();
        on_every_isa(&x, false, |y| {
            for (&x, &y) in x.iter().zip(y) {
                let exact = f64::from(x).exp();
                if exact > f64::from(f32::MAX) {
                    assert!(y == f32::INFINITY || y == f32::MAX, "exp({x}) = {y}");
                    continue;
                }
                let nearest = exact as f32;
                let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
                assert!((f64::from(y) - exact).abs() <= 2.0 * unit, "exp({x}) = {y}, exactly {exact}");
            }
        });
    }

    #[test]
    fn exp_of_special_values() {
        let x = [f32::NEG_INFINITY, -200.0, -104.0, -0.0, 0.0, 88.8, 1e30, f32::INFINITY, f32::NAN];
        on_every_isa(&x, false, |y| {
            assert_eq!(y[..8], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(y[8].is_nan());
        });
    }

    #[test]
    fn tanh_is_within_its_bound() {
        let x: Vec<f32> = (0..200_000).map(|i| -100.0 + i as f32 * 1e-3).collect();
        on_every_isa(&x, true, |y| {
            for (&x, &y) in x.iter().zip(y) {
                assert!((f64::from(y) - f64::from(x).tanh()).abs() <= 1.5e-7, "tanh({x}) = {y}");
            }
        });
    }
}
