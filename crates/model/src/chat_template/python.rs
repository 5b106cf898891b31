//! Behaviour of Jinja2 that comes from Python and that minijinja lacks: printing and iteration of values, methods, filters.

use minijinja::value::{Kwargs, ObjectRepr, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::filters::{dict_sort, escaped, indent, to_float, to_int, truncate, url_encode, word_count, xml_attributes};
use super::globals::{cycler, dict, joiner};
use super::limits::{kept, listed, printed};
use super::text_methods::{centered, text_method};

/// Name of the filter through which [`super::tags::rewritten`] passes the sequence of a loop.
pub(super) const ITERATED: &str = "__iterated__";

/// Name of the filter through which [`super::tags::rewritten`] passes values that a namespace keeps.
pub(super) const KEPT: &str = "__kept__";

/// Name of the function that [`super::operators::rewritten`] puts in place of `%`.
pub(super) const MODULO: &str = "__modulo__";

/// Adapts `environment` to Python's behaviour.
pub(super) fn teach(environment: &mut Environment<'_>) {
    environment.set_formatter(|out, _, value| {
        let written = match float(value) {
            // Python prints 1e16 as `1e+16`, minijinja as digits.
            Some(number) => out.write_str(&float_text(number)),
            None => match value.as_str() {
                Some(text) => out.write_str(text),
                None => out.write_str(&printed(value)?),
            },
        };
        written.map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        match value.as_str().and_then(|text| text_method(text, method, arguments)) {
            Some(result) => result,
            // Values of minijinja are immutable, so a copy is the value itself.
            None if method == "copy" && value.kind() == ValueKind::Map => Ok(value.clone()),
            None if method == "index" && value.kind() == ValueKind::Seq => {
                let (item,): (Value,) = from_args(arguments)?;
                let at = listed(state, value)?.into_iter().position(|other| other == item);
                at.map(Value::from).ok_or_else(|| refused(format!("{item} is not in list")))
            }
            None => unknown_method_callback(state, value, method, arguments),
        }
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // Whatever has a length and indices in Python counts, texts included.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_filter(ITERATED, iterated);
    environment.add_filter("list", |state: &State, value: &Value| listed(state, &iterated(value)?).map(Value::from));
    environment.add_filter(KEPT, kept);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", |text: &str, width: Option<usize>| centered(text, width.unwrap_or(80), ' '));
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("string", |value: &Value| match float(value) {
        Some(number) => Ok(Value::from(float_text(number))),
        None if value.as_str().is_some() => Ok(value.clone()),
        None => printed(value).map(Value::from),
    });
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_filter("indent", indent);
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: &Value| match value.is_safe() {
            true => Ok(value.clone()),
            false => escaped(&printed(value)?).map(Value::from_safe_string),
        });
    }
    environment.add_filter("forceescape", |value: &Value| escaped(&printed(value)?).map(Value::from_safe_string));
    environment.add_filter("dictsort", dict_sort);
    environment.add_function("dict", dict);
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_filter("striptags", minijinja_contrib::filters::striptags);
    environment.add_filter("xmlattr", xml_attributes);
    environment.add_filter("format", |state: &State, format: &str, arguments: Rest<Value>, named: Kwargs| {
        let pairs: Result<Vec<(String, Value)>, Error> =
            named.args().map(|name| Ok((name.to_owned(), named.get(name)?))).collect();
        let named = Value::from_pairs(pairs?);
        let arguments =
            if arguments.is_empty() && named.is_true() { named } else { Value::from(Tuple::from(arguments.to_vec())) };
        super::printf::formatted(state, format, &arguments)
    });
    environment.add_test("callable", |value: &Value| {
        value.is_undefined() || value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Plain)
    });
    environment.add_function(MODULO, super::printf::modulo);
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", joiner);
}

pub(super) fn refused(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

pub(super) fn iterated(value: &Value) -> Result<Value, Error> {
    // minijinja iterates over none as if it were empty, and a template would drop content without a word.
    if value.is_none() { Err(refused("None is not iterable")) } else { Ok(value.clone()) }
}

/// The value as a float, if it is a number that is not an integer.
pub(super) fn float(value: &Value) -> Option<f64> {
    if value.kind() != ValueKind::Number || value.is_integer() { None } else { f64::try_from(value.clone()).ok() }
}

/// A number as Python's `repr` writes it: the shortest digits that round-trip, with an exponent from 1e16 on and below
/// 1e-4.
pub(super) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust's Debug of a float has `.0` where Python has it, and Display has not.
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // The bounds of Python's `repr`.
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// An argument by position or name; None counts as not given.
pub(super) fn given_or_named(given: &[Value], at: usize, options: &Kwargs, name: &str) -> Result<Option<Value>, Error> {
    let value = match given.get(at) {
        Some(value) => Some(value.clone()),
        None => options.get::<Option<Value>>(name)?,
    };
    Ok(value.filter(|value| !value.is_none()))
}

/// Keys of a map, in its order.
pub(super) fn keys(map: &Value) -> Result<Vec<Value>, Error> {
    Ok(map.try_iter()?.collect())
}
