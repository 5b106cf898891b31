//! One value out of its text. An error is the rest of the sentence that begins "key is value, but …".

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use flashjob_config::{Choice, holds_par};

/// Largest count: kernels and block tables have 32-bit signed integers.
pub(super) const LARGEST_COUNT: u64 = i32::MAX as u64;

/// Longest duration, ten years: beyond it, arithmetic on instants overflows on some systems.
const LONGEST_SECONDS: u64 = 315_360_000;

/// Prefixes of byte units with base and power; lower-case here, any case in input.
const BYTE_PREFIXES: [(&str, u128, u32); 13] = [
    ("", 1, 1),
    ("k", 1000, 1),
    ("m", 1000, 2),
    ("g", 1000, 3),
    ("t", 1000, 4),
    ("p", 1000, 5),
    ("e", 1000, 6),
    ("ki", 1024, 1),
    ("mi", 1024, 2),
    ("gi", 1024, 3),
    ("ti", 1024, 4),
    ("pi", 1024, 5),
    ("ei", 1024, 6),
];

/// A whole number of digits only.
pub(super) fn whole(text: &str, smallest: u64, largest: u64) -> Result<u64, String> {
    // Not `parse` alone, which accepts a plus sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|number| (smallest..=largest).contains(number))
        .ok_or_else(|| format!("it must be a whole number from {smallest} to {largest}"))
}

/// A count of at least one.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    let number = whole(text, 1, LARGEST_COUNT)?;
    usize::try_from(number).ok().and_then(NonZeroUsize::new).ok_or_else(|| "it is too large here".to_owned())
}

/// A decimal number for which `allowed` holds; `words` describe the condition.
pub(super) fn number(text: &str, words: &str, allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    // Not `parse` alone, which accepts exponents, signs, `inf` and `nan`.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = if plain { text.parse().ok() } else { None };
    number.filter(|number: &f64| number.is_finite() && allowed(*number)).ok_or_else(|| format!("it must be {words}"))
}

/// A boolean as written in YAML 1.1, Helm charts and shells.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "on" => Ok(true),
        "no" | "n" | "off" => Ok(false),
        _ => strict_boolean(text),
    }
}

/// A boolean as `true`, `false`, `1` or `0`, the forms that MLflow's client reads.
pub(super) fn strict_boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

/// A duration in seconds, or in numbers with units (`90s`, `1.5h`, `1h 30m`).
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let plain = number(text, "", |_| true).ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    plain
        .or_else(|| humantime::parse_duration(text).ok())
        .or_else(|| decimal_duration(text))
        .filter(|duration| duration.as_secs() <= LONGEST_SECONDS)
        .ok_or_else(|| "it must be a duration in seconds, or with a unit such as 90s or 5m".to_owned())
}

/// Decimals with units in sequence, as Go prints durations (`1m30.5s`). humantime reads whole numbers only, but knows
/// the units.
fn decimal_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (decimal, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let after = after.trim_start();
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len()));
        let unit = humantime::parse_duration(&format!("1{unit}")).ok()?;
        let seconds = number(decimal, "", |_| true).ok()? * unit.as_secs_f64();
        sum = sum.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = after.trim_start();
    }
    (!text.trim().is_empty()).then_some(sum)
}

/// A duration in seconds, as a key shows it.
pub(super) fn shown_seconds(duration: &Duration) -> String {
    duration.as_secs_f64().to_string()
}

/// A value out of a short list of names.
pub(super) fn choice<T: Choice>(text: &str) -> Result<T, String> {
    // In this spelling alone, as vLLM and SGLang take the words of their own choices.
    let found = T::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
        format!("it must be one of {}", names.join(", "))
    })
}

/// A number of bytes, at least one: a decimal with an optional exponent and an optional unit of SI, IEC or Kubernetes
/// (grammar of `resource.Quantity`, `apimachinery/pkg/api/resource/quantity.go`). A fraction of a byte is rounded up,
/// as there.
///
/// By hand: crates for byte sizes have no exponents, go through `f64`, and take `Gb` for gigabytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const WORDS: &str = "it must be a number of bytes above 0, perhaps with a unit such as 512MiB or 4GB";
    let (decimal, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let (exponent, unit) = exponent(rest).unwrap_or((0, rest.trim()));
    // Kubernetes' suffixes for milli, micro and nano: `512m` is almost always a mistake for `512M`.
    if matches!(unit, "m" | "u" | "n") {
        return Err(format!("`{unit}` stands for a fraction of a byte; write `M` for 1000000 bytes, `Mi` for 1048576"));
    }
    // `kb` and `gb` are a common way to write bytes; `Gb` is that of bits.
    let capital = unit.len() > 1 && unit.starts_with(|c: char| c.is_ascii_uppercase()) && unit.ends_with('b');
    let unit = unit.to_ascii_lowercase();
    if capital || ["bit", "bits", "bps"].iter().any(|bits| unit.ends_with(bits)) {
        return Err("its unit counts bits; give bytes, such as 512MiB or 4GB".to_owned());
    }
    // `1e` is an exponent that was cut short, `1E` an exabyte.
    let cut_short = rest.starts_with("e") && unit == "e";
    let prefix = unit.strip_suffix('b').unwrap_or(&unit);
    let factor = BYTE_PREFIXES.iter().find(|(name, ..)| !cut_short && *name == prefix);
    let factor = factor.map(|(_, base, power)| base.pow(*power));
    factor.and_then(|factor| scaled(decimal, exponent, factor)).ok_or_else(|| WORDS.to_owned())
}

/// A decimal exponent at the start of `text`, with the rest. An `E` without digits is the unit of exabytes.
fn exponent(text: &str) -> Option<(i32, &str)> {
    let after = text.strip_prefix(['e', 'E'])?;
    let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
    let end = after.len() - unsigned.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((after[..end].parse().ok()?, after[end..].trim()))
}

/// `decimal` times ten to the power of `exponent` times `factor`, rounded up; at least 1 before rounding. Exact, in
/// integers.
fn scaled(decimal: &str, exponent: i32, factor: u128) -> Option<u64> {
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(factor)?;
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let power = 10u128.checked_pow(shift.unsigned_abs())?;
    let bytes =
        if shift < 0 { (product >= power).then(|| product.div_ceil(power))? } else { product.checked_mul(power)? };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

/// A text that is not empty.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it must be a name".to_owned());
    }
    plain(text)
}

/// A text of one line that may be shown and sent to others.
pub(super) fn plain(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err("it must not hold line breaks or other control characters".to_owned());
    }
    if holds_par(text) {
        return Err("it holds a Pre-Authenticated Request, which is a secret and belongs into par alone".to_owned());
    }
    Ok(text.to_owned())
}

/// A path to a file or directory.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains("://") {
        return Err("it must be a path, not a URL".to_owned());
    }
    if holds_par(text) {
        return Err("it holds a Pre-Authenticated Request, which is a secret and belongs into par alone".to_owned());
    }
    match text.is_empty() || text.contains('\0') {
        true => Err("it must be a path".to_owned()),
        false => Ok(PathBuf::from(text)),
    }
}

/// Prefixes separated by commas, or a JSON list of them.
pub(super) fn prefixes(text: &str) -> Result<Vec<String>, String> {
    plain(text)?;
    if text.starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|_| "it must be prefixes separated by commas, or a JSON list of texts".to_owned());
    }
    Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_every_unit_of_si_iec_and_kubernetes() {
        for (text, expected) in [
            ("1", 1),
            ("1B", 1),
            ("7 b", 7),
            ("3k", 3000),
            ("3K", 3000),
            ("3kb", 3000),
            ("1KB", 1000),
            ("2Ki", 2048),
            ("2KiB", 2048),
            ("2kib", 2048),
            ("2 KIB", 2048),
            ("500M", 500_000_000),
            ("4gb", 4_000_000_000),
            ("1.5Gi", 3 << 29),
            ("1.50GiB", 3 << 29),
            (".5Mi", 1 << 19),
            ("2.T", 2_000_000_000_000),
            ("1Ti", 1 << 40),
            ("2TiB", 1 << 41),
            ("3tb", 3_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1PiB", 1 << 50),
            ("1E", 1_000_000_000_000_000_000),
            ("1Ei", 1 << 60),
            ("1EiB", 1 << 60),
            ("1e9", 1_000_000_000),
            ("129e6", 129_000_000),
            ("1.5E3", 1500),
            ("12e+2", 1200),
            ("5000e-3", 5),
            ("1.3Gi", 1_395_864_372),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_none_say_why() {
        for (text, part) in [
            ("100m", "`m` stands for a fraction of a byte"),
            ("100n", "`n` stands for a fraction of a byte"),
            ("4Gb", "its unit counts bits"),
            ("4Mbit", "its unit counts bits"),
            ("4 gbps", "its unit counts bits"),
            ("", "a number of bytes above 0"),
            ("0", "a number of bytes above 0"),
            ("0.0Gi", "a number of bytes above 0"),
            ("0.4", "a number of bytes above 0"),
            (".", "a number of bytes above 0"),
            ("Gi", "a number of bytes above 0"),
            ("1.2.3", "a number of bytes above 0"),
            ("-1", "a number of bytes above 0"),
            ("1e", "a number of bytes above 0"),
            ("1e999999999999", "a number of bytes above 0"),
            ("1e99", "a number of bytes above 0"),
            ("16Ei", "a number of bytes above 0"),
            ("4GX", "a number of bytes above 0"),
            ("340282366920938463463374607431768211456", "a number of bytes above 0"),
        ] {
            match bytes(text) {
                Err(clause) => assert!(clause.contains(part), "{text}: {clause}"),
                Ok(number) => panic!("{text}: {number}"),
            }
        }
    }

    #[test]
    fn durations_and_truth_values_are_read_as_charts_and_programs_write_them() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("1.5", 1500),
            ("90s", 90_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("1m30.5s", 90_500),
            ("0.25 min", 15_000),
            ("500ms", 500),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "1.5.5h", "-3s", "1h30", "5 parsecs", "1e300", "9999999999h", "1.5"] {
            assert_eq!(duration(text).is_ok(), text == "1.5", "{text}");
        }
        for (text, value) in [("Yes", true), ("ON", true), ("y", true), ("no", false), ("Off", false), ("0", false)] {
            assert_eq!(boolean(text), Ok(value), "{text}");
        }
        assert!(boolean("maybe").is_err() && strict_boolean("yes").is_err());
    }
}
