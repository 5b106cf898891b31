//! Python's `%`: the remainder of numbers, and the formatting of texts.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::limits::{check_length, debugged, listed, printed};
use super::python::{float, float_text, refused};

/// Widest field and longest fraction, in characters.
const MAX_WIDTH: usize = 4096;

/// Fuel for a remainder of numbers, whose expression is compiled each time.
const REMAINDER_FUEL: u64 = 64;

/// Evaluates `left % right`.
pub(super) fn modulo(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(format) => formatted(state, format, right).map(Value::from),
        None => {
            state.consume_fuel(REMAINDER_FUEL)?;
            // By minijinja itself: it has Python's sign rules for integers and floats, but no function for them.
            state.env().compile_expression("left % right")?.eval(minijinja::context! { left, right })
        }
    }
}

/// Options between a `%` and its letter.
#[derive(Default)]
struct Field {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Evaluates `format % arguments`.
pub(super) fn formatted(state: &State, format: &str, arguments: &Value) -> Result<String, Error> {
    let tuple: Vec<Value> = if arguments.is_tuple() { listed(state, arguments)? } else { vec![arguments.clone()] };
    let (mut text, mut used, mut rest) = (String::new(), 0, format.chars().peekable());
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut named = None;
        if rest.next_if_eq(&'(').is_some() {
            let name: String = rest.by_ref().take_while(|c| *c != ')').collect();
            if arguments.kind() != ValueKind::Map {
                return Err(refused("format requires a mapping"));
            }
            let value = arguments.get_item(&Value::from(name.as_str()))?;
            if value.is_undefined() {
                return Err(refused(format!("the mapping has no {name:?}")));
            }
            named = Some(value);
        }
        let mut next = || {
            used += 1;
            tuple.get(used - 1).cloned().ok_or_else(|| refused("not enough arguments for format string"))
        };
        let mut field = Field::default();
        while let Some(flag) = rest.next_if(|c| "-0+ #".contains(*c)) {
            match flag {
                '-' => field.left = true,
                '0' => field.zero = true,
                '+' => field.plus = true,
                ' ' => field.space = true,
                _ => field.alternate = true,
            }
        }
        let mut number = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<i64>, Error> {
            if rest.next_if_eq(&'*').is_some() {
                return next()?.as_i64().map(Some).ok_or_else(|| refused("* wants int"));
            }
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if digits.is_empty() { Ok(None) } else { digits.parse().map(Some).map_err(|_| refused("width too big")) }
        };
        let width = number(&mut rest)?.unwrap_or(0);
        // A negative width, which only `*` can give, means left-aligned, as in C.
        field.left |= width < 0;
        field.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if rest.next_if_eq(&'.').is_some() {
            field.precision = Some(usize::try_from(number(&mut rest)?.unwrap_or(0)).unwrap_or(0));
        }
        if field.width.max(field.precision.unwrap_or(0)) > MAX_WIDTH {
            return Err(refused(format!("a field of {format:?} is wider than {MAX_WIDTH}")));
        }
        // Length modifiers of C, which Python accepts and ignores.
        while rest.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(letter) = rest.next() else { return Err(refused("incomplete format")) };
        if letter == '%' {
            text.push('%');
            continue;
        }
        let value = named.map_or_else(next, Ok)?;
        check_length(text.len())?;
        write!(text, "{}", field.converted(state, letter, &value)?).map_err(|error| refused(error.to_string()))?;
    }
    if used < tuple.len() && arguments.kind() != ValueKind::Map && (arguments.is_tuple() || used == 0) {
        // A list counts as one argument; a mapping need not be used.
        if arguments.is_tuple() || arguments.kind() != ValueKind::Seq {
            return Err(refused("not all arguments converted during string formatting"));
        }
    }
    Ok(text)
}

impl Field {
    fn converted(&self, state: &State, letter: char, value: &Value) -> Result<String, Error> {
        let number = || {
            f64::try_from(value.clone()).map_err(|_| refused(format!("%{letter} format: a real number is required")))
        };
        let negative_and_digits = match letter {
            's' | 'r' | 'a' => {
                let text = match (letter, float(value)) {
                    (_, Some(number)) => float_text(number),
                    ('s', None) => printed(value)?,
                    _ => debugged(value)?,
                };
                // Little of a long text may remain, which is all that minijinja counts.
                state.consume_fuel(text.len() as u64 / 64)?;
                let text = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
                return Ok(self.padded(String::new(), text, false));
            }
            'c' => {
                let text = value
                    .as_str()
                    .map(str::to_owned)
                    .or_else(|| Some(char::from_u32(u32::try_from(value.as_i64()?).ok()?)?.to_string()));
                let text = text.filter(|text| text.chars().count() == 1);
                return Ok(self.padded(String::new(), text.ok_or_else(|| refused("%c requires int or char"))?, false));
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let whole = match float(value) {
                    Some(number) if "diu".contains(letter) && number.is_finite() => number.trunc() as i128,
                    None if value.kind() == ValueKind::Bool => i128::from(value.is_true()),
                    None if value.kind() == ValueKind::Number => i128::try_from(value.clone())?,
                    _ => return Err(refused(format!("%{letter} format: an integer is required"))),
                };
                let size = whole.unsigned_abs();
                let digits = match letter {
                    'x' => format!("{size:x}"),
                    'X' => format!("{size:X}"),
                    'o' => format!("{size:o}"),
                    _ => size.to_string(),
                };
                let zeros = "0".repeat(self.precision.unwrap_or(0).saturating_sub(digits.len()));
                let prefix = match letter {
                    'd' | 'i' | 'u' => String::new(),
                    letter if self.alternate => format!("0{letter}"),
                    _ => String::new(),
                };
                (whole < 0, prefix, zeros + &digits)
            }
            'f' | 'F' => (
                number()?.is_sign_negative(),
                String::new(),
                format!("{:.*}", self.precision.unwrap_or(6), number()?.abs()),
            ),
            'e' | 'E' => (
                number()?.is_sign_negative(),
                String::new(),
                scientific(number()?.abs(), self.precision.unwrap_or(6), letter),
            ),
            'g' | 'G' => (
                number()?.is_sign_negative(),
                String::new(),
                general(number()?.abs(), self.precision.unwrap_or(6), letter),
            ),
            _ => return Err(refused(format!("unsupported format character {letter:?}"))),
        };
        let (negative, prefix, digits) = negative_and_digits;
        let sign = match negative {
            true => "-",
            false if self.plus => "+",
            false if self.space => " ",
            false => "",
        };
        Ok(self.padded(format!("{sign}{prefix}"), digits, self.zero && !self.left))
    }

    fn padded(&self, sign: String, text: String, zeros: bool) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + text.chars().count());
        match (self.left, zeros) {
            (true, _) => format!("{sign}{text}{}", " ".repeat(missing)),
            (false, true) => format!("{sign}{}{text}", "0".repeat(missing)),
            (false, false) => format!("{}{sign}{text}", " ".repeat(missing)),
        }
    }
}

fn scientific(number: f64, precision: usize, letter: char) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{digits}{letter}{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(number: f64, precision: usize, letter: char) -> String {
    let precision = precision.max(1);
    let rounded = format!("{number:.*e}", precision - 1);
    let exponent: i32 = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or_default();
    let trimmed = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    // As in C: the exponent after rounding decides between the two notations.
    if exponent < -4 || exponent >= precision as i32 {
        let letter = if letter == 'G' { 'E' } else { 'e' };
        let text = scientific(number, precision - 1, letter);
        let (digits, exponent) = text.split_once(letter).unwrap_or((&text, "+00"));
        return format!("{}{letter}{exponent}", trimmed(digits));
    }
    let decimals = usize::try_from(precision as i32 - 1 - exponent).unwrap_or(0);
    trimmed(&format!("{number:.decimals$}"))
}
