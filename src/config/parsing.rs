//! One value out of its text. An error is the rest of the sentence that begins "key is value, but …".

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Counts go to kernels and block tables that hold 32-bit signed integers.
pub(super) const LARGEST_COUNT: u64 = i32::MAX as u64;

/// Ten years: beyond it, arithmetic on instants overflows on some systems.
const LONGEST_SECONDS: u64 = 315_360_000;

/// Units of bytes: SI, IEC and Kubernetes spellings.
const BYTE_UNITS: [(&str, u64); 17] = [
    ("", 1),
    ("B", 1),
    ("k", 1_000),
    ("K", 1_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("M", 1_000_000),
    ("MB", 1_000_000),
    ("G", 1_000_000_000),
    ("GB", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("MiB", 1 << 20),
    ("Gi", 1 << 30),
    ("GiB", 1 << 30),
];

/// A whole number in digits alone.
pub(super) fn whole(text: &str, smallest: u64, largest: u64) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|number| (smallest..=largest).contains(number))
        .ok_or_else(|| format!("it must be a whole number from {smallest} to {largest}"))
}

/// How many, at least one.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    let number = whole(text, 1, LARGEST_COUNT)?;
    usize::try_from(number).ok().and_then(NonZeroUsize::new).ok_or_else(|| "it is too large here".to_owned())
}

/// A decimal number for which `allowed` holds; `words` say what that is.
pub(super) fn number(text: &str, words: &str, allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = if plain { text.parse().ok() } else { None };
    number.filter(|number: &f64| number.is_finite() && allowed(*number)).ok_or_else(|| format!("it must be {words}"))
}

/// `true` or `false`, or as digits.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

/// Seconds, or a number with a unit (`90s`, `5m`, `1h 30m`).
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let plain = number(text, "", |_| true).ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    plain
        .or_else(|| humantime::parse_duration(text).ok())
        .filter(|duration| duration.as_secs() <= LONGEST_SECONDS)
        .ok_or_else(|| "it must be a duration in seconds, or with a unit such as 90s or 5m".to_owned())
}

/// A number of bytes, at least one, perhaps with a unit.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = BYTE_UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
    let number: Option<u64> = number.parse().ok();
    number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "it must be a number of bytes above 0, perhaps with a unit such as 512MiB or 4GB".to_owned())
}

/// A text with something in it.
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

/// Whether a Pre-Authenticated Request, right or nearly so, is part of `text`.
pub(super) fn holds_par(text: &str) -> bool {
    ["/p/", "/n/", "/b/"].iter().all(|part| text.contains(part))
}

/// A path.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains("://") {
        return Err("it must be a path, not a URL".to_owned());
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
