//! One value out of its text. An error is the rest of the sentence that begins "key is value, but …".

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Counts go to kernels and block tables that hold 32-bit signed integers.
pub(super) const LARGEST_COUNT: u64 = i32::MAX as u64;

/// Ten years: beyond it, arithmetic on instants overflows on some systems.
const LONGEST_SECONDS: u64 = 315_360_000;

/// Letters of SI and IEC prefixes, each a thousand (or 1024) times the one before.
const BYTE_PREFIXES: &str = "kMGTPE";

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

/// A number of bytes, at least one, perhaps with a unit of SI (`MB`), IEC (`MiB`) or Kubernetes (`M`, `Mi`, `1e6`:
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>). A fraction of a byte is rounded up,
/// as there.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let factor = |unit: &str| -> Option<u64> {
        let unit = unit.strip_suffix('B').unwrap_or(unit);
        let (unit, base) = unit.strip_suffix('i').map_or((unit, 1000), |unit| (unit, 1024));
        match unit {
            // `iB` is no unit.
            "" if base == 1000 => Some(1),
            // Only `k` is SI's; both are written.
            "K" => Some(base),
            _ if unit.len() == 1 => Some(base.pow(1 + BYTE_PREFIXES.find(unit)? as u32)),
            _ => None,
        }
    };
    let parse = || {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        // An exponent belongs to the number: `1e6`, and not `1E` or `1EiB`, which are units.
        let exponent = text[end..].strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
        let exponent = exponent.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let end = exponent.map_or(end, |rest| text.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len());
        let (number, unit) = text.split_at(end);
        let factor = factor(unit.trim_start())?;
        match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor),
            Err(_) => {
                let bytes = number.parse::<f64>().ok()? * factor as f64;
                (bytes < u64::MAX as f64).then_some(bytes.ceil() as u64)
            }
        }
    };
    parse().filter(|bytes| *bytes > 0).ok_or_else(|| {
        "it must be a number of bytes above 0, perhaps with a unit such as 512MiB, 512Mi, 4GB or 4G".to_owned()
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_units_of_si_iec_and_kubernetes() {
        for (text, expected) in [
            ("1", 1),
            ("512B", 512),
            ("1k", 1000),
            ("1K", 1000),
            ("1kB", 1000),
            ("1KB", 1000),
            ("1Ki", 1 << 10),
            ("1ki", 1 << 10),
            ("1KiB", 1 << 10),
            ("2M", 2_000_000),
            ("2MB", 2_000_000),
            ("2Mi", 2 << 20),
            ("2 MiB", 2 << 20),
            ("3G", 3_000_000_000),
            ("3GiB", 3 << 30),
            ("4T", 4_000_000_000_000),
            ("4TB", 4_000_000_000_000),
            ("4Ti", 4 << 40),
            ("4TiB", 4 << 40),
            ("5P", 5_000_000_000_000_000),
            ("5PiB", 5 << 50),
            ("1E", 1_000_000_000_000_000_000),
            ("1EiB", 1 << 60),
            ("1e6", 1_000_000),
            ("129E6", 129_000_000),
            ("1.5Gi", 3 << 29),
            ("0.5k", 500),
            (".5k", 500),
            ("1.0000001k", 1001),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "0",
            "0Gi",
            "-1",
            "B",
            "Gi",
            "iB",
            "1iB",
            "1m",
            "1Mb",
            "1gb",
            "1KK",
            "1 1k",
            "1.2.3k",
            "1e",
            "1e400",
            "17E",
            "99999999999999999999",
            "1,5G",
            "1_000",
            "NaN",
            "inf",
            "1Zi",
            "0x10",
            "1é",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
