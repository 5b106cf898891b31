//! What Jinja2 takes from Python and minijinja has not: how values are printed, what is iterable, methods and filters.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The filter through which [`super::tags::rewritten`] passes what a loop goes through.
pub(super) const ITERATED: &str = "__iterated__";

/// The function that [`super::operators::rewritten`] puts in the place of `%`.
pub(super) const MODULO: &str = "__modulo__";

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
            None if method == "copy" && value.kind() == ValueKind::Map => Ok(value.clone()),
            None if method == "index" && value.kind() == ValueKind::Seq => {
                let (item,): (Value,) = from_args(arguments)?;
                let at = value.try_iter()?.position(|other| other == item);
                at.map(Value::from).ok_or_else(|| refused(format!("{item} is not in list")))
            }
            None => unknown_method_callback(state, value, method, arguments),
        }
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_filter(ITERATED, iterated);
    environment.add_filter("list", |value: &Value| iterated(value)?.try_iter().map(|items| items.collect::<Value>()));
    environment.add_filter("wordcount", word_count);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", |text: &str, width: Option<usize>| centered(text, width.unwrap_or(80), ' '));
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("string", |value: &Value| match float(value) {
        Some(number) => Value::from(float_text(number)),
        None if value.as_str().is_some() => value.clone(),
        None => Value::from(value.to_string()),
    });
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_filter("indent", indent);
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: &Value| match value.is_safe() {
            true => value.clone(),
            false => Value::from_safe_string(escaped(&value.to_string())),
        });
    }
    environment.add_filter("forceescape", |value: &Value| Value::from_safe_string(escaped(&value.to_string())));
    environment.add_filter("dictsort", dict_sort);
    environment.add_function("dict", dict);
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_filter("striptags", minijinja_contrib::filters::striptags);
    environment.add_filter("xmlattr", xml_attributes);
    environment.add_filter("format", |format: &str, arguments: Rest<Value>, named: Kwargs| {
        let pairs: Result<Vec<(String, Value)>, Error> =
            named.args().map(|name| Ok((name.to_owned(), named.get(name)?))).collect();
        let named = Value::from_pairs(pairs?);
        let arguments =
            if arguments.is_empty() && named.is_true() { named } else { Value::from(Tuple::from(arguments.to_vec())) };
        super::printf::formatted(format, &arguments)
    });
    environment.add_test("callable", |value: &Value| {
        value.is_undefined() || value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Plain)
    });
    environment.add_function(MODULO, super::printf::modulo);
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

fn refused(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn iterated(value: &Value) -> Result<Value, Error> {
    if value.is_none() { Err(refused("None is not iterable")) } else { Ok(value.clone()) }
}

/// The number that a value is, if it is one with a fraction.
pub(super) fn float(value: &Value) -> Option<f64> {
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

/// An argument at its position or by its name; None counts as not given.
pub(super) fn given_or_named(given: &[Value], at: usize, options: &Kwargs, name: &str) -> Result<Option<Value>, Error> {
    let value = match given.get(at) {
        Some(value) => Some(value.clone()),
        None => options.get::<Option<Value>>(name)?,
    };
    Ok(value.filter(|value| !value.is_none()))
}

/// The keys of a map, in its order.
pub(super) fn keys(map: &Value) -> Result<Vec<Value>, Error> {
    Ok(map.try_iter()?.collect())
}

fn dict_sort(map: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
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
    let pairs: Result<Vec<[Value; 2]>, Error> =
        keys(map)?.into_iter().map(|key| map.get_item(&key).map(|value| [key, value])).collect();
    let mut pairs = pairs?;
    let order = |pair: &[Value; 2]| match pair[place].as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => pair[place].clone(),
    };
    // Equal ones stay in their order either way, as with Python's `sorted`.
    pairs.sort_by(|left, right| {
        let ordering = order(left).cmp(&order(right));
        if reverse { ordering.reverse() } else { ordering }
    });
    Ok(pairs.into_iter().map(|pair| Value::from(Tuple::from(pair.to_vec()))).collect())
}

/// Python's `dict`.
fn dict(given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    if given.len() > 1 {
        return Err(refused(format!("dict expected at most 1 argument, got {}", given.len())));
    }
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(entries) = given.first() {
        for item in iterated(entries)?.try_iter()? {
            pairs.push(match entries.kind() {
                ValueKind::Map => (item.clone(), entries.get_item(&item)?),
                _ => (item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?),
            });
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// Jinja2's `cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(refused("cycler: at least one item has to be provided"));
    }
    Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) }))
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str()? == "current").then(|| self.current())
    }

    fn call_method(self: &Arc<Self>, _: &mut State, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        let () = from_args(arguments)?;
        match method {
            "next" => {
                let current = self.current();
                self.at.fetch_add(1, Ordering::Relaxed);
                Ok(current)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

fn to_int(value: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = given_or_named(&given, 0, &options, "default")?.unwrap_or_else(|| Value::from(0));
    let base = given_or_named(&given, 1, &options, "base")?.map_or(Ok(10), u32::try_from)?;
    options.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return match float(value) {
            Some(number) if number.is_finite() => Ok(Value::from(number.trunc() as i128)),
            None if value.kind() == ValueKind::Number => Ok(value.clone()),
            None if value.kind() == ValueKind::Bool => Ok(Value::from(i32::from(value.is_true()))),
            _ if value.is_undefined() => Err(Error::from(ErrorKind::UndefinedError)),
            _ => Ok(default),
        };
    };
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = digits.get(..2).map(str::to_ascii_lowercase);
    let (base, digits) = match (prefixed.as_deref(), base) {
        (Some("0x"), 0 | 16) => (16, &digits[2..]),
        (Some("0o"), 0 | 8) => (8, &digits[2..]),
        (Some("0b"), 0 | 2) => (2, &digits[2..]),
        (_, 0) => (10, digits),
        (_, base) => (base, digits),
    };
    if (2..=36).contains(&base)
        && !digits.starts_with(['+', '-'])
        && let Ok(number) = i128::from_str_radix(digits, base)
    {
        return Ok(Value::from(sign * number));
    }
    Ok(number_of(&text)
        .filter(|number| number.is_finite())
        .map_or(default, |number| Value::from(number.trunc() as i128)))
}

fn to_float(value: &Value, given: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
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

fn indent(text: &str, given: Rest<Value>, options: Kwargs) -> Result<String, Error> {
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
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut indented = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            indented.push('\n');
        }
        if (at == 0 && first) || (at > 0 && (blank || !line.is_empty())) {
            indented.push_str(&indent);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// `text` as markupsafe escapes it.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

fn xml_attributes(map: &Value, spaced: Option<bool>) -> Result<String, Error> {
    let mut text = String::new();
    for key in keys(map)? {
        let value = map.get_item(&key)?;
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = key.to_string();
        if name.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c)) {
            return Err(refused(format!("invalid character in attribute name: {name:?}")));
        }
        if !text.is_empty() || spaced.unwrap_or(true) {
            text.push(' ');
        }
        text.push_str(&format!("{}=\"{}\"", escaped(&name), escaped(&value.to_string())));
    }
    Ok(text)
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
        "split" | "rsplit" => split(text, method == "rsplit", arguments),
        "title" => from_args(arguments).map(|()| {
            let mut inside = false;
            let cased = |c: char| {
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

/// `split`, or `rsplit` where `from_right`.
fn split(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (given, options): (Rest<Value>, Kwargs) = from_args(arguments)?;
    let separator = given_or_named(&given, 0, &options, "sep")?;
    let most = given_or_named(&given, 1, &options, "maxsplit")?.map_or(Ok(-1), i64::try_from)?;
    options.assert_all_used()?;
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
    let named = |at: usize, name: &str| given_or_named(&given, at, &options, name);
    let (length, killwords, end, leeway) =
        (named(0, "length")?, named(1, "killwords")?, named(2, "end")?, named(3, "leeway")?);
    options.assert_all_used()?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let killwords = killwords.is_some_and(|value| value.is_true());
    let end = end.map_or_else(|| "...".to_owned(), |end| end.to_string());
    let leeway = leeway.map_or(Ok(5), usize::try_from)?;
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
