//! Units of axes and values, with SI prefixes.

/// Prefixes from 10^-9 to 10^18, each a thousand times the one before it.
const PREFIXES: [&str; 10] = ["n", "µ", "m", "", "k", "M", "G", "T", "P", "E"];
const FIRST_EXPONENT: i32 = -9;

/// Non-breaking, so that a number stays with its unit.
const SPACE: char = '\u{a0}';

/// Unit of the values of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds; long ones are shown in minutes or hours.
    Time,
    /// Share of a whole, shown in percent.
    Share,
    /// Things that are counted, such as `tokens/s`.
    Count(&'static str),
    /// Symbol that takes a prefix, such as `W` or `FLOP/s`.
    Symbol(&'static str),
}

/// A divisor for the numbers of an axis, and the text behind each of them.
pub(crate) struct Shown {
    pub(crate) divisor: f64,
    pub(crate) suffix: &'static str,
}

impl Unit {
    /// Divisor and suffix for an axis whose largest value is `largest`.
    pub(crate) fn shown(self, largest: f64) -> Shown {
        match self {
            Unit::Share => Shown { divisor: 0.01, suffix: "%" },
            Unit::Time if largest >= 6.0 * 3600.0 => Shown { divisor: 3600.0, suffix: "h" },
            Unit::Time if largest >= 600.0 => Shown { divisor: 60.0, suffix: "min" },
            Unit::Time if largest >= 1.0 || largest <= 0.0 => Shown { divisor: 1.0, suffix: "s" },
            Unit::Time => {
                let (divisor, prefix) = prefix(largest);
                let suffix = match prefix {
                    "n" => "ns",
                    "µ" => "µs",
                    _ => "ms",
                };
                Shown { divisor, suffix }
            }
            Unit::Count(_) | Unit::Symbol(_) => {
                // Half of it: `200`, `400` … `1000` are easier to read than `0.2 k`, `0.4 k` … `1 k`.
                let (divisor, suffix) = prefix(largest / 2.0);
                Shown { divisor, suffix }
            }
        }
    }

    /// The unit as it stands behind an axis's name; nothing where ticks have it.
    pub(crate) fn on_axis(self) -> Option<&'static str> {
        match self {
            Unit::Time | Unit::Share => None,
            Unit::Count(words) | Unit::Symbol(words) => Some(words).filter(|words| !words.is_empty()),
        }
    }

    /// `value` with its unit, to four digits.
    pub fn text(self, value: f64) -> String {
        if !value.is_finite() {
            return "–".to_owned();
        }
        let of = |shown: Shown| (number(value / shown.divisor), shown.suffix);
        match self {
            Unit::Count("") => number(value),
            Unit::Count(words) => format!("{}{SPACE}{words}", number(value)),
            Unit::Time | Unit::Share => {
                let (number, suffix) = of(self.shown(value.abs()));
                format!("{number}{SPACE}{suffix}")
            }
            Unit::Symbol(symbol) => {
                let (divisor, prefix) = prefix(value.abs());
                format!("{}{SPACE}{prefix}{symbol}", number(value / divisor))
            }
        }
    }

    /// Text of the tick at `value`, on an axis that is shown so.
    pub(crate) fn tick(shown: &Shown, value: f64) -> String {
        // Zero is zero in every unit.
        match (number(value / shown.divisor), shown.suffix) {
            (zero, _) if zero == "0" => zero,
            (number, "") => number,
            (number, suffix) => format!("{number}{SPACE}{suffix}"),
        }
    }
}

/// The power of a thousand below `value`, and its prefix.
fn prefix(value: f64) -> (f64, &'static str) {
    if !(value.is_finite() && value > 0.0) {
        return (1.0, "");
    }
    // A hair above, so that 999.99…, a rounded 1000, is not shown as 1000.
    let thousands = ((value * (1.0 + 1e-9)).log10() / 3.0).floor() as i32;
    let place = (thousands - FIRST_EXPONENT / 3).clamp(0, PREFIXES.len() as i32 - 1);
    (10f64.powi(FIRST_EXPONENT + 3 * place), PREFIXES[place as usize])
}

/// `value` to four digits, whole digits in groups of three.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    // Four digits are more than a measurement repeats; exact figures are in the files.
    let magnitude = value.abs().log10().floor() as i32;
    if !(-6..=14).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.*}", (3 - magnitude).max(0) as usize);
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = whole.trim_start_matches('-');
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        // Four digits are read without a gap.
        if place > 0 && digits.len() > 4 && (digits.len() - place).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    let sign = if whole.starts_with('-') { "−" } else { "" };
    match fraction {
        "" => format!("{sign}{grouped}"),
        fraction => format!("{sign}{grouped}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_groups() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.123_456, "0.1235"),
            (1234.5, "1234"),
            (12_345.0, "12\u{202f}345"),
            (1_234_567.0, "1\u{202f}234\u{202f}567"),
            (-2.5, "−2.5"),
            (1e-9, "1.000e-9"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn values_have_prefixes_of_their_units() {
        for (unit, value, text) in [
            (Unit::Time, 0.000_25, "250 µs"),
            (Unit::Time, 0.012, "12 ms"),
            (Unit::Time, 90.0, "90 s"),
            (Unit::Time, 1200.0, "20 min"),
            (Unit::Time, 36_000.0, "10 h"),
            (Unit::Share, 0.5, "50 %"),
            (Unit::Count("tokens/s"), 1500.0, "1500 tokens/s"),
            (Unit::Symbol("FLOP/s"), 1.5e12, "1.5 TFLOP/s"),
            (Unit::Symbol("W"), 0.0, "0 W"),
        ] {
            assert_eq!(unit.text(value).replace(SPACE, " "), text, "{value}");
        }
    }
}
