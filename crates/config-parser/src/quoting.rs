//! Values in sentences about them: redacted, escaped, cut and quoted.

use flashjob_config::redact;

/// Most characters of a value in a sentence.
const LONGEST_SHOWN: usize = 80;

/// `text` redacted, escaped, cut and quoted, for use in a sentence.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "empty".to_owned();
    }
    // Redacted before it is cut: a token that was cut in two would not be found.
    let redacted = redact(text);
    let mut shown: String = redacted.chars().take(LONGEST_SHOWN).flat_map(char::escape_debug).collect();
    if redacted.chars().count() > LONGEST_SHOWN {
        shown.push('…');
    }
    // Between backticks, quotes need no escape.
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

/// `text` of `key` for a sentence: [`quoted`], or a placeholder if the whole value is a secret.
pub(super) fn quoted_value(key: &str, text: &str) -> String {
    match key {
        _ if text.is_empty() => quoted(text),
        "par" | "output-par" | "mlflow-tracking-password" | "mlflow-tracking-token" => "a value not shown".to_owned(),
        _ => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_fits_a_sentence() {
        assert_eq!(quoted(""), "empty");
        assert_eq!(quoted("a\nb\"c'"), "`a\\nb\"c'`");
        assert_eq!(quoted(&"é".repeat(100)), format!("`{}…`", "é".repeat(80)));
    }
}
