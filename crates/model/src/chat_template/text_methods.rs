//! Methods of Python's `str` that minijinja-contrib has not, or has without some of their arguments.

use minijinja::value::{Kwargs, Rest, Tuple, from_args};
use minijinja::{Error, Value};

use super::limits::check_length;
use super::python::{given_or_named, refused};

/// Calls methods of Python's `str` that minijinja-contrib lacks; `None` for others.
pub(super) fn text_method(text: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => {
            from_args(arguments).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(arguments).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" => partition(arguments, |separator| text.split_once(separator), [text, "", ""]),
        "rpartition" => partition(arguments, |separator| text.rsplit_once(separator), ["", "", text]),
        "split" | "rsplit" => split(text, method == "rsplit", arguments),
        "title" => from_args(arguments).map(|()| {
            let mut inside = false;
            let cased = |c: char| {
                // As CPython: a word begins behind any character that is no letter, so that "it's" becomes "It'S".
                let was_inside = std::mem::replace(&mut inside, c.is_alphabetic());
                if was_inside { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
            };
            Value::from(text.chars().map(cased).collect::<String>())
        }),
        "istitle" => from_args(arguments).map(|()| {
            let (mut inside, mut cased, mut title) = (false, false, true);
            for c in text.chars() {
                title &= if c.is_uppercase() { !inside } else { !c.is_lowercase() || inside };
                inside = c.is_uppercase() || c.is_lowercase();
                cased |= inside;
            }
            Value::from(title && cased)
        }),
        "isidentifier" => from_args(arguments).map(|()| {
            let mut characters = text.chars();
            let first = characters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::from(first && characters.all(|c| c.is_alphanumeric() || c == '_'))
        }),
        "isdecimal" => {
            from_args(arguments).map(|()| Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())))
        }
        "isprintable" => from_args(arguments).map(|()| Value::from(!text.chars().any(char::is_control))),
        "expandtabs" => {
            from_args(arguments).and_then(|(width,): (Option<usize>,)| expand_tabs(text, width.unwrap_or(8)))
        }
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
            // Python counts characters, Rust bytes.
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
    Ok(Value::from(Tuple::from(parts.to_vec())))
}

/// Python's `split`, or `rsplit` if `from_right`.
fn split(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (given, options): (Rest<Value>, Kwargs) = from_args(arguments)?;
    let separator = given_or_named(&given, 0, &options, "sep")?;
    let most = given_or_named(&given, 1, &options, "maxsplit")?.map_or(Ok(-1), i64::try_from)?;
    options.assert_all_used()?;
    // Negative means without a limit; less one, because `splitn` counts pieces and not cuts.
    let limit = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| refused("a separator must be a text"))?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            match from_right {
                true => text.rsplitn(limit + 1, separator).collect(),
                false => text.splitn(limit + 1, separator).collect(),
            }
        }
        // Without a separator, runs of white space count as one, and the ends are trimmed.
        None => {
            let outer =
                |text: &str| if from_right { text.trim_end().len() } else { text.len() - text.trim_start().len() };
            let (mut parts, mut rest) = (Vec::new(), text);
            loop {
                let at = outer(rest);
                rest = if from_right { &rest[..at] } else { &rest[at..] };
                let (found, width) =
                    match if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) } {
                        Some(at) if parts.len() < limit => (at, rest[at..].chars().next().map_or(1, char::len_utf8)),
                        _ => break,
                    };
                let (left, right) = (&rest[..found], &rest[found + width..]);
                parts.push(if from_right { right } else { left });
                rest = if from_right { left } else { right };
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn expand_tabs(text: &str, width: usize) -> Result<Value, Error> {
    let (mut expanded, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                check_length(expanded.len())?;
                expanded.push_str(&padding("", spaces, ' ')?);
                column += spaces;
            }
            c => {
                expanded.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::from(expanded))
}

fn zero_filled(text: &str, width: usize) -> Result<Value, Error> {
    let zeros = padding(text, width, '0')?;
    // Zeros come between the sign and the digits.
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

/// The fill that `text` lacks to `width` characters.
pub(super) fn padding(text: &str, width: usize, fill: char) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    // Within the limit of a text, which minijinja's fuel does not cover here.
    if missing > 1 << 20 {
        return Err(refused(format!("a text of {width} characters is too long to be filled up")));
    }
    Ok(std::iter::repeat_n(fill, missing).collect())
}

pub(super) fn centered(text: &str, width: usize, fill: char) -> Result<String, Error> {
    let padding: Vec<char> = padding(text, width, fill)?.chars().collect();
    // CPython puts the odd character on the left if the width is odd.
    let left = padding.len() / 2 + (padding.len() & width & 1);
    Ok(padding[..left].iter().copied().chain(text.chars()).chain(padding[left..].iter().copied()).collect())
}
