//! Values out of a short list of words.

use std::fmt;

use super::{
    ApplyChatTemplate, BackendKind, DeviceChoice, DtypeChoice, InstructionSet, LogFormat, MountMode, OnBadInput,
};

/// A type whose values have names. The first name of a value is the one that is shown.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// All names with their values.
    const NAMES: &'static [(&'static str, Self)];

    /// The value called `text`, or what is allowed as the rest of a sentence.
    fn parse(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("it must be one of {}", names.join(", "))
        })
    }

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

/// `dataset`, before the file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DatasetKind {
    Random,
    Prefix,
    Sonnet,
    ShareGpt,
    Jsonl,
    Arithmetic,
}

choices! {
    BackendKind { "candle" => Candle, "vllm" => Vllm, "sglang" => Sglang, }
    DeviceChoice { "auto" => Auto, "cpu" => Cpu, "cuda" => Cuda, }
    DtypeChoice {
        "auto" => Auto, "float16" => Float16, "bfloat16" => Bfloat16, "float32" => Float32,
        "half" => Float16, "float" => Float32,
    }
    InstructionSet { "avx512" => Avx512, "avx2" => Avx2, "portable" => Portable, }
    MountMode { "auto" => Auto, "fuse" => Fuse, "copy" => Copy, }
    LogFormat { "auto" => Auto, "text" => Text, "json" => Json, }
    DatasetKind {
        "random" => Random, "prefix" => Prefix, "sonnet" => Sonnet, "sharegpt" => ShareGpt, "jsonl" => Jsonl,
        "arithmetic" => Arithmetic,
    }
    ApplyChatTemplate { "auto" => Auto, "always" => Always, "never" => Never, }
    OnBadInput { "fail" => Fail, "skip" => Skip, }
}
