//! Filters of Jinja2 that minijinja lacks, or whose arguments or results differ.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::limits::{check_length, printed};
use super::python::{float, given_or_named, keys, refused};
use super::text_methods::padding;

/// Characters that `urllib.parse.quote` does not quote, besides letters and digits.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b'/');
const QUOTED_IN_QUERY: &AsciiSet = &QUOTED.add(b'/');

pub(super) fn dict_sort(state: &State, map: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let named = |at: usize, name: &str| given_or_named(&given, at, &options, name);
    let (case_sensitive, by, reverse) = (named(0, "case_sensitive")?, named(1, "by")?, named(2, "reverse")?);
    options.assert_all_used()?;
    let truth = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let (case_sensitive, reverse) = (truth(case_sensitive), truth(reverse));
    let place = match by.as_ref().map_or(Some("key"), Value::as_str) {
        Some("key") => 0,
        Some("value") => 1,
        _ => return Err(refused("dictsort goes by \"key\" or \"value\"")),
    };
    if map.kind() != ValueKind::Map {
        return Err(refused(format!("dictsort is for maps, not for {}", map.kind())));
    }
    let mut pairs = Vec::new();
    for key in keys(map)? {
        let pair = [key.clone(), map.get_item(&key)?];
        let order = match pair[place].as_str() {
            Some(text) => {
                // Paid for by length: lower-casing and comparing long keys is work that minijinja does not count.
                state.consume_fuel(1 + text.len() as u64 / 64)?;
                if case_sensitive { pair[place].clone() } else { Value::from(text.to_lowercase()) }
            }
            None => pair[place].clone(),
        };
        pairs.push((order, pair));
    }
    // Stable in both directions, as Python's `sorted`.
    pairs.sort_by(|(left, _), (right, _)| {
        let ordering = left.cmp(right);
        if reverse { ordering.reverse() } else { ordering }
    });
    Ok(pairs.into_iter().map(|(_, pair)| Value::from(Tuple::from(pair.to_vec()))).collect())
}

pub(super) fn to_int(value: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = given_or_named(&given, 0, &options, "default")?.unwrap_or_else(|| Value::from(0));
    let base = given_or_named(&given, 1, &options, "base")?.map_or(Ok(10), u32::try_from)?;
    options.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return match float(value) {
            Some(number) if number.is_finite() => Ok(Value::from(number.trunc() as i128)),
            None if value.kind() == ValueKind::Number => Ok(value.clone()),
            // In Python, bool is a subclass of int.
            None if value.kind() == ValueKind::Bool => Ok(Value::from(i32::from(value.is_true()))),
            _ if value.is_undefined() => Err(Error::from(ErrorKind::UndefinedError)),
            _ => Ok(default),
        };
    };
    // Python allows underscores between digits.
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    // Python's `int` accepts a prefix only if it agrees with the base, or if the base is 0.
    let prefixed = digits.get(..2).map(str::to_ascii_lowercase);
    let (base, digits) = match (prefixed.as_deref(), base) {
        (Some("0x"), 0 | 16) => (16, &digits[2..]),
        (Some("0o"), 0 | 8) => (8, &digits[2..]),
        (Some("0b"), 0 | 2) => (2, &digits[2..]),
        (_, 0) => (10, digits),
        (_, base) => (base, digits),
    };
    if (2..=36).contains(&base)
        // Behind its own sign, `from_str_radix` would accept a second one.
        && !digits.starts_with(['+', '-'])
        && let Ok(number) = i128::from_str_radix(digits, base)
    {
        return Ok(Value::from(sign * number));
    }
    Ok(number_of(&text)
        .filter(|number| number.is_finite())
        .map_or(default, |number| Value::from(number.trunc() as i128)))
}

pub(super) fn to_float(value: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = given_or_named(&given, 0, &options, "default")?.unwrap_or_else(|| Value::from(0.0));
    options.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let number = match value.as_str() {
        Some(text) => number_of(&text.replace('_', "")),
        None if value.kind() == ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or(default, Value::from))
}

/// The number that a text means to Python's `float`.
fn number_of(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

pub(super) fn indent(text: &str, given: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let named = |at: usize, name: &str| given_or_named(&given, at, &options, name);
    let (width, first, blank) = (named(0, "width")?, named(1, "first")?, named(2, "blank")?);
    options.assert_all_used()?;
    let indent = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => padding("", usize::try_from(width)?, ' ')?,
        },
    };
    let truth = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let (first, blank) = (truth(first), truth(blank));
    // Line ends of all systems count, as in Jinja2.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut indented = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            indented.push('\n');
        }
        // Checked for each line: an indent of a megabyte on a million lines must not be built first.
        check_length(indented.len() + indent.len() + line.len())?;
        if (at == 0 && first) || (at > 0 && (blank || !line.is_empty())) {
            indented.push_str(&indent);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// `text` as markupsafe escapes it.
pub(super) fn escaped(text: &str) -> Result<String, Error> {
    // The worst case: an apostrophe becomes five bytes.
    check_length(text.len().saturating_mul(5))?;
    let text = text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

pub(super) fn xml_attributes(map: &Value, spaced: Option<bool>) -> Result<String, Error> {
    let mut text = String::new();
    for key in keys(map)? {
        let value = map.get_item(&key)?;
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = printed(&key)?;
        if name.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c)) {
            return Err(refused(format!("invalid character in attribute name: {name:?}")));
        }
        if !text.is_empty() || spaced.unwrap_or(true) {
            text.push(' ');
        }
        text.push_str(&format!("{}=\"{}\"", escaped(&name)?, escaped(&printed(&value)?)?));
        check_length(text.len())?;
    }
    Ok(text)
}

pub(super) fn word_count(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

pub(super) fn truncate(text: &str, given: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let named = |at: usize, name: &str| given_or_named(&given, at, &options, name);
    let (length, killwords, end, leeway) =
        (named(0, "length")?, named(1, "killwords")?, named(2, "end")?, named(3, "leeway")?);
    options.assert_all_used()?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let killwords = killwords.is_some_and(|value| value.is_true());
    let end = end.map_or_else(|| Ok("...".to_owned()), |end| printed(&end))?;
    let leeway = leeway.map_or(Ok(5), usize::try_from)?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(refused(format!("truncate: a length of {length} is shorter than its end")));
    };
    // As in Jinja2: a text that exceeds the length by a few characters only is kept.
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(kept).collect();
    // The last word may have been cut; it is dropped as a whole.
    let words = if killwords { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(format!("{words}{end}"))
}

pub(super) fn url_encode(value: &Value) -> Result<String, Error> {
    if value.as_str().is_some() || value.is_none() || value.try_iter().is_err() {
        return Ok(utf8_percent_encode(&printed(value)?, QUOTED).to_string());
    }
    let quoted = |value: &Value| -> Result<String, Error> {
        // A query encodes a space as `+`, and a slash, unlike a path.
        Ok(utf8_percent_encode(&printed(value)?, QUOTED_IN_QUERY).to_string().replace("%20", "+"))
    };
    let mut text = String::new();
    for item in value.try_iter()? {
        let (key, item) = if value.kind() == ValueKind::Map {
            (item.clone(), value.get_item(&item)?)
        } else {
            (item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?)
        };
        let separator = if text.is_empty() { "" } else { "&" };
        write!(text, "{separator}{}={}", quoted(&key)?, quoted(&item)?).map_err(|error| refused(error.to_string()))?;
        check_length(text.len())?;
    }
    Ok(text)
}
