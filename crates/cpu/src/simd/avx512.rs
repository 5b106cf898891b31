//! 512-bit vectors.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::Isa;
use super::super::isa::Available;
use super::{Kernel, Simd};

/// Exists only inside [`run`], where the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(());

/// Runs `kernel` with AVX-512.
pub(super) fn run(isa: Available, kernel: impl Kernel) {
    assert_eq!(isa.isa(), Isa::Avx512);
    // SAFETY: `isa` was found on this processor.
    unsafe { enter(kernel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn enter(kernel: impl Kernel) {
    kernel.run(Avx512(()));
}

/// Evaluates intrinsics: each method has `self`, so the processor has them.
macro_rules! have {
    ($($body:tt)*) => {
        // SAFETY: `self` proves the instructions; memory is the caller's promise where a method takes a pointer.
        unsafe { $($body)* }
    };
}

/// The lowest `count` of 16 lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    debug_assert!(count <= 16);
    ((1_u32 << count) - 1) as __mmask16
}

impl Avx512 {
    /// From each 128 bits, the lower half of `a` and then of `b`.
    #[inline(always)]
    fn low_pairs(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))))
    }

    /// From each 128 bits, the upper half of `a` and then of `b`.
    #[inline(always)]
    fn high_pairs(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))))
    }
}

impl Simd for Avx512 {
    type V = __m512;
    type I = __m512i;
    type Square = [__m512; 16];
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        have!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn square(self) -> [__m512; 16] {
        [self.splat(0.0); 16]
    }

    #[inline(always)]
    fn transpose(self, r: [__m512; 16]) -> [__m512; 16] {
        let zero = self.splat(0.0);
        let (mut s, mut t) = ([zero; 16], [zero; 16]);
        have! {
            for i in 0..8 {
                s[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                s[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                t[4 * i] = self.low_pairs(s[4 * i], s[4 * i + 2]);
                t[4 * i + 1] = self.high_pairs(s[4 * i], s[4 * i + 2]);
                t[4 * i + 2] = self.low_pairs(s[4 * i + 1], s[4 * i + 3]);
                t[4 * i + 3] = self.high_pairs(s[4 * i + 1], s[4 * i + 3]);
            }
            // Quarter q of t[4i + j] now holds column 4q + j of rows 4i..4i + 4.
            for j in 0..4 {
                s[j] = _mm512_shuffle_f32x4::<0x88>(t[j], t[4 + j]);
                s[4 + j] = _mm512_shuffle_f32x4::<0xdd>(t[j], t[4 + j]);
                s[8 + j] = _mm512_shuffle_f32x4::<0x88>(t[8 + j], t[12 + j]);
                s[12 + j] = _mm512_shuffle_f32x4::<0xdd>(t[8 + j], t[12 + j]);
            }
            for j in 0..4 {
                t[j] = _mm512_shuffle_f32x4::<0x88>(s[j], s[8 + j]);
                t[4 + j] = _mm512_shuffle_f32x4::<0x88>(s[4 + j], s[12 + j]);
                t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(s[j], s[8 + j]);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(s[4 + j], s[12 + j]);
            }
        }
        t
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        have!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        have!(_mm512_maskz_loadu_ps(first(count), from))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        have!(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const bf16) -> [__m512; 2] {
        have! {
            let pairs = _mm512_loadu_si512(from.cast());
            let low = _mm512_slli_epi32::<16>(pairs);
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m512i {
        have!(_mm512_loadu_si512(from.cast()))
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512i {
        have!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512i {
        have!(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    fn shift_right(self, v: __m512i, count: u32) -> __m512i {
        have!(_mm512_srlv_epi32(v, _mm512_set1_epi32(count as i32)))
    }

    #[inline(always)]
    fn shift_left(self, v: __m512i, count: u32) -> __m512i {
        have!(_mm512_sllv_epi32(v, _mm512_set1_epi32(count as i32)))
    }

    #[inline(always)]
    fn low_bits(self, v: __m512i, count: u32) -> __m512i {
        have!(_mm512_and_si512(v, _mm512_set1_epi32((1 << count) - 1)))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn float(self, v: __m512i) -> __m512 {
        have!(_mm512_cvtepi32_ps(v))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        have!(_mm512_storeu_ps(to, v))
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, v: __m512, count: usize) {
        have!(_mm512_mask_storeu_ps(to, first(count), v))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        have!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        have!(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(v))
    }

    #[inline(always)]
    fn scale(self, v: __m512, n: __m512) -> __m512 {
        have!(_mm512_scalef_ps(v, n))
    }

    #[inline(always)]
    fn within(self, v: __m512, start: usize, end: usize, other: __m512) -> __m512 {
        have!(_mm512_mask_blend_ps(first(end) & !first(start), other, v))
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        have!(_mm512_reduce_add_ps(v))
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        have!(_mm512_reduce_max_ps(v))
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        have!(_mm_prefetch::<_MM_HINT_T1>(line.cast()))
    }
}

super::super::tile::tiles!(
    Avx512, Avx512(()), ["avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"], 1 2 3 4 5 6 7 8 9 10 11 12 13 14,
    coded 1 2 3 4
);
