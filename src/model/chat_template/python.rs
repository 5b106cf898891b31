//! What Jinja2 takes from Python and minijinja has not: how values are printed, what is iterable, methods and filters.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The filter through which [`super::tags::rewritten`] passes what a loop goes through.
pub(super) const ITERATED: &str = "__iterated__";

/// What `urllib.parse.quote` leaves as it is, besides letters and digits.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b'/');
const QUOTED_IN_QUERY: &AsciiSet = &QUOTED.add(b'/');

/// Gives `environment` Python's ways.
pub(super) fn teach(environment: &mut Environment<'_>) {
    environment.set_formatter(|out, _, value| {
        let written = match float(value) {
            Some(number) => out.write_str(&float_text(number)),
            None => write!(out, "{value}"),
        };
        written.map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        match value.as_str().and_then(|text| text_method(text, method, arguments)) {
            Some(result) => result,
            None => unknown_method_callback(state, value, method, arguments),
        }
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_filter(ITERATED, iterated);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", |text: &str, width: Option<usize>| centered(text, width.unwrap_or(80), ' '));
    environment.add_filter("urlencode", url_encode);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

fn refused(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn iterated(value: &Value) -> Result<Value, Error> {
    if value.is_none() { Err(refused("None is not iterable")) } else { Ok(value.clone()) }
}

/// The number that a value is, if it is one with a fraction.
fn float(value: &Value) -> Option<f64> {
    if value.kind() != ValueKind::Number || value.is_integer() { None } else { f64::try_from(value.clone()).ok() }
}

/// A number as Python's `repr` writes it: the shortest digits that mean it, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Methods of Python's `str` that minijinja-contrib has not.
fn text_method(text: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => {
            from_args(arguments).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(arguments).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" => partition(arguments, |separator| text.split_once(separator), [text, "", ""]),
        "rpartition" => partition(arguments, |separator| text.rsplit_once(separator), ["", "", text]),
        "rsplit" => rsplit(text, arguments),
        "zfill" => from_args(arguments).and_then(|(width,): (usize,)| zero_filled(text, width)),
        "center" => padded(arguments, |width, fill| centered(text, width, fill)),
        "ljust" => padded(arguments, |width, fill| Ok(format!("{text}{}", padding(text, width, fill)?))),
        "rjust" => padded(arguments, |width, fill| Ok(format!("{}{text}", padding(text, width, fill)?))),
        "casefold" => from_args(arguments).map(|()| Value::from(text.to_lowercase())),
        "swapcase" => from_args(arguments).map(|()| {
            let swapped =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            Value::from(text.chars().map(swapped).collect::<String>())
        }),
        "index" | "rindex" => from_args(arguments).and_then(|(part,): (&str,)| {
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| refused("substring not found"))?;
            Ok(Value::from(text[..at].chars().count()))
        }),
        _ => return None,
    })
}

fn partition<'a>(
    arguments: &[Value],
    split: impl Fn(&str) -> Option<(&'a str, &'a str)>,
    whole: [&'a str; 3],
) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    if separator.is_empty() {
        return Err(refused("empty separator"));
    }
    let parts =
        split(separator).map_or(whole.map(Value::from), |(left, right)| [left, separator, right].map(Value::from));
    Ok(Value::from(minijinja::value::Tuple::from(parts.to_vec())))
}

fn rsplit(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator {
        None => options.get::<Option<Value>>("sep")?,
        given => given,
    };
    let most = most.map_or_else(|| options.get::<Option<i64>>("maxsplit"), |most| Ok(Some(most)))?;
    options.assert_all_used()?;
    let limit = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match separator.as_ref().filter(|separator| !separator.is_none()) {
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| refused("rsplit's separator is a text"))?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            text.rsplitn(limit.saturating_add(1), separator).collect()
        }
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end());
            while parts.len() < limit
                && let Some(at) = rest.rfind(char::is_whitespace)
            {
                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(&rest[at + width..]);
                rest = rest[..at].trim_end();
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn zero_filled(text: &str, width: usize) -> Result<Value, Error> {
    let zeros = padding(text, width, '0')?;
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    Ok(Value::from(format!("{sign}{zeros}{digits}")))
}

fn padded(arguments: &[Value], pad: impl Fn(usize, char) -> Result<String, Error>) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(arguments)?;
    let mut fill = fill.unwrap_or(" ").chars();
    match (fill.next(), fill.next()) {
        (Some(fill), None) => pad(width, fill).map(Value::from),
        _ => Err(refused("the fill character must be exactly one character long")),
    }
}

/// What `text` lacks to `width` characters.
fn padding(text: &str, width: usize, fill: char) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    if missing > 1 << 20 {
        return Err(refused(format!("a text of {width} characters is too long to be filled up")));
    }
    Ok(std::iter::repeat_n(fill, missing).collect())
}

fn centered(text: &str, width: usize, fill: char) -> Result<String, Error> {
    let padding: Vec<char> = padding(text, width, fill)?.chars().collect();
    // CPython gives the odd one to the left where the width is odd.
    let left = padding.len() / 2 + (padding.len() & width & 1);
    Ok(padding[..left].iter().copied().chain(text.chars()).chain(padding[left..].iter().copied()).collect())
}

fn word_count(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

fn truncate(text: &str, given: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let named = |at: usize, name: &str| match given.get(at) {
        Some(value) => Ok(Some(value.clone())),
        None => options.get::<Option<Value>>(name),
    };
    let (length, killwords, end, leeway) =
        (named(0, "length")?, named(1, "killwords")?, named(2, "end")?, named(3, "leeway")?);
    options.assert_all_used()?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let killwords = killwords.is_some_and(|value| value.is_true());
    let end = end.map_or_else(|| "...".to_owned(), |end| end.to_string());
    let leeway = leeway.filter(|leeway| !leeway.is_none()).map_or(Ok(5), usize::try_from)?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(refused(format!("truncate: a length of {length} is shorter than its end")));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(kept).collect();
    let words = if killwords { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(format!("{words}{end}"))
}

fn url_encode(value: &Value) -> Result<String, Error> {
    if value.as_str().is_some() || value.is_none() || value.try_iter().is_err() {
        return Ok(utf8_percent_encode(&value.to_string(), QUOTED).to_string());
    }
    let quoted =
        |value: &Value| utf8_percent_encode(&value.to_string(), QUOTED_IN_QUERY).to_string().replace("%20", "+");
    let mut text = String::new();
    for item in value.try_iter()? {
        let (key, item) = if value.kind() == ValueKind::Map {
            (item.clone(), value.get_item(&item)?)
        } else {
            (item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?)
        };
        let separator = if text.is_empty() { "" } else { "&" };
        write!(text, "{separator}{}={}", quoted(&key), quoted(&item)).map_err(|error| refused(error.to_string()))?;
    }
    Ok(text)
}
