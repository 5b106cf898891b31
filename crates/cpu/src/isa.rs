//! Instruction sets of the kernels of a pool: the widest that this processor has, found once at run time, or a lower set.

use std::sync::OnceLock;

/// Selects the set of pools that are given none. A job's configuration has the same variable and says so to each pool; this is
/// for what has no configuration: tests and benchmarks.
const VARIABLE: &str = "FLASHJOB_ISA";

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 256-bit vectors: AVX2, FMA and F16C.
    Avx2,
    /// Code that the compiler vectorises for the build's baseline (SSE2, NEON).
    Portable,
}

impl Isa {
    /// The one that `FLASHJOB_ISA` names (`avx512`, `avx2` or `portable`), else the widest that this processor has.
    ///
    /// # Panics
    /// If it names something else, or what this processor does not have.
    pub fn detect() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let available = Isa::available();
            let Some(named) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return available[0] };
            let found = available.iter().find(|isa| isa.short_name() == named);
            *found.unwrap_or_else(|| panic!("{VARIABLE} is {named:?}, and this processor has {available:?}"))
        })
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

    /// `avx512`, `avx2` or `portable`.
    fn short_name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
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

/// The name of the widest instruction set that this processor has, whatever is used of it.
pub fn capabilities() -> &'static str {
    Isa::available()[0].name()
}
