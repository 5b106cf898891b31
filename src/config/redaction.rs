//! Texts that people gave, made fit to be shown: no tokens, no passwords, no control characters, not too long.

use super::parsing;

/// Characters of a value that fit a sentence.
const LONGEST_SHOWN: usize = 80;

const HIDDEN: &str = "<redacted>";

/// `text` with whatever looks like a Pre-Authenticated Request's token, a URL's login or its query replaced.
///
/// For texts of unknown content; where a value is known to be a secret it is not shown at all.
pub fn redact(text: &str) -> String {
    let shown = hide_logins(text);
    let is_url = shown.contains("://");
    let shown = if is_url || parsing::holds_par(&shown) { hide_tokens(&shown) } else { shown };
    match shown.split_once('?') {
        Some((before, query)) if is_url && !query.is_empty() => format!("{before}?{HIDDEN}"),
        _ => shown,
    }
}

/// `text` redacted, escaped, cut and quoted: a word of a sentence.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "empty".to_owned();
    }
    let redacted = redact(text);
    let mut shown: String = redacted.chars().take(LONGEST_SHOWN).flat_map(char::escape_debug).collect();
    if redacted.chars().count() > LONGEST_SHOWN {
        shown.push('…');
    }
    // `escape_debug` escapes quotes too, which need no escape between backticks.
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

/// `text` of `key` for a sentence: [`quoted`], or a placeholder where the whole value is a secret.
pub(super) fn quoted_value(key: &str, text: &str) -> String {
    match key {
        _ if text.is_empty() => quoted(text),
        "par" | "output-par" | "mlflow-tracking-password" | "mlflow-tracking-token" => "a value not shown".to_owned(),
        _ => quoted(text),
    }
}

/// Replaces `user:password@` after each `://`, and at the start of a text without a scheme.
fn hide_logins(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        return match authority.rsplit_once('@') {
            Some((login, host)) if login.contains(':') => format!("{HIDDEN}@{host}{path}"),
            _ => text.to_owned(),
        };
    };
    let mut parts = vec![scheme.to_owned()];
    for part in rest.split("://") {
        let (authority, path) = part.split_at(part.find(['/', '?', '#', '"']).unwrap_or(part.len()));
        parts.push(match authority.rsplit_once('@') {
            Some((_, host)) => format!("{HIDDEN}@{host}{path}"),
            None => part.to_owned(),
        });
    }
    parts.join("://")
}

/// Replaces the path segment after each `/p/`.
fn hide_tokens(text: &str) -> String {
    let mut parts = text.split("/p/");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c == '/' || c == '"' || c.is_whitespace()).unwrap_or(part.len());
        shown.push_str("/p/");
        shown.push_str(if end == 0 { "" } else { HIDDEN });
        shown.push_str(&part[end..]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_logins_and_queries_are_hidden_wherever_they_stand() {
        for (text, shown) in [
            ("https://host/p/s3cr3t/n/ns/b/x/o/", "https://host/p/<redacted>/n/ns/b/x/o/"),
            ("host/p/s3cr3t/n/ns/b/x/o/", "host/p/<redacted>/n/ns/b/x/o/"),
            ("https://host/p/s3cr3t", "https://host/p/<redacted>"),
            (r#"[{"par":"https://host/p/s3cr3t"}]"#, r#"[{"par":"https://host/p/<redacted>"}]"#),
            ("https://me:s3cr3t@host/x", "https://<redacted>@host/x"),
            ("https://me:s3c/r3t@host/x?token=s3cr3t", "https://me:s3c/r3t@host/x?<redacted>"),
            ("me:s3cr3t@host", "<redacted>@host"),
            ("/data/p/llama", "/data/p/llama"),
            ("me@here", "me@here"),
        ] {
            assert_eq!(redact(text), shown, "{text}");
        }
    }

    #[test]
    fn what_is_quoted_fits_a_sentence() {
        assert_eq!(quoted(""), "empty");
        assert_eq!(quoted("a\nb\"c'"), "`a\\nb\"c'`");
        assert_eq!(quoted(&"é".repeat(100)), format!("`{}…`", "é".repeat(80)));
    }
}
