//! Names of the values that a user chooses from a short list.

use std::fmt;

use super::{
    ApplyChatTemplate, BackendKind, DeviceChoice, DtypeChoice, InstructionSet, LogFormat, MountMode, OnBadInput,
    OutputOrder, Quantization, Schedule,
};

/// A type whose values have names. The first name of a value is the one that is shown.
pub trait Choice: Copy + PartialEq + 'static {
    /// All names with their values.
    const NAMES: &'static [(&'static str, Self)];

    /// The name that is shown.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}

macro_rules! choices {
    ($($type:ty { $($name:literal => $value:ident,)* })*) => { $(
        impl Choice for $type {
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, Self::$value),)*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    )* };
}

choices! {
    BackendKind { "candle" => Candle, "vllm" => Vllm, "sglang" => Sglang, }
    DeviceChoice { "auto" => Auto, "cpu" => Cpu, "cuda" => Cuda, }
    DtypeChoice {
        "auto" => Auto, "float16" => Float16, "bfloat16" => Bfloat16, "float32" => Float32,
        "half" => Float16, "float" => Float32,
    }
    Quantization { "auto" => Auto, "none" => None, }
    InstructionSet { "avx512" => Avx512, "avx2" => Avx2, "portable" => Portable, }
    MountMode { "auto" => Auto, "fuse" => Fuse, "copy" => Copy, }
    LogFormat { "auto" => Auto, "text" => Text, "json" => Json, }
    ApplyChatTemplate { "auto" => Auto, "always" => Always, "never" => Never, }
    OnBadInput { "fail" => Fail, "skip" => Skip, }
    OutputOrder { "input" => Input, "any" => Any, }
    Schedule { "input" => Input, "prefix" => Prefix, "longest" => Longest, }
}
