//! Which instructions the kernels of a pool use: the widest that this processor has, found once at run time.

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 256-bit vectors: AVX2, FMA and F16C.
    Avx2,
    /// What the compiler vectorises for the build's baseline (SSE2, NEON).
    Portable,
}

impl Isa {
    /// The widest that this processor has.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }

    /// All that this processor has, widest first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                found.push(Isa::Avx512);
            }
            if avx2 {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// `avx512`, `avx2+fma+f16c` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2+fma+f16c",
            Isa::Portable => "portable",
        }
    }
}

/// An instruction set that was found on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Available(Isa);

impl Available {
    /// # Panics
    /// If this processor does not have `isa`.
    pub(super) fn new(isa: Isa) -> Available {
        assert!(Isa::available().contains(&isa), "this processor does not have {}", isa.name());
        Available(isa)
    }

    pub(super) fn isa(self) -> Isa {
        self.0
    }
}

/// The name of the widest instruction set that this processor has: what a [`super::Pool`] uses unless told otherwise.
pub fn capabilities() -> &'static str {
    Isa::detect().name()
}
