//! Texts that people gave, made fit to be shown: no tokens, no passwords, no control characters, not too long.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;

use regex::Regex;

const HIDDEN: &str = "<redacted>";

/// Pattern of a path separator, plain or percent-encoded once or twice; also doubled or reversed, so that a typing
/// error does not reveal a token.
const SEPARATOR: &str = r"(?:[/\\]|%(?:25)?2[fF]|%(?:25)?5[cC])";

/// Pattern of one path component.
const COMPONENT: &str = r#"(?:[^/\\%\s"'`]|%(?:2[0-46-9a-eA-E]|5[0-9abAB]|[013467-9a-fA-F][0-9a-fA-F])|%25(?:2[0-9a-eA-E]|[013-9a-fA-F]))+"#;

/// Component between `p` and `n` of a Pre-Authenticated Request.
static TOKEN_BEFORE_NAMESPACE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(&format!("(?i)((?:^|{SEPARATOR})p{SEPARATOR}+){COMPONENT}({SEPARATOR}+n{SEPARATOR})")).ok()
});

/// Component after a component `p`, in a text that is a URL.
static TOKEN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(&format!("(?i)((?:^|{SEPARATOR})p{SEPARATOR}+){COMPONENT}")).ok());

/// URL of Oracle's object storage whose path begins with `p`. Other servers may use such a path, MLflow among them.
static TOKEN_AFTER_HOST: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let host = r"(?:objectstorage|oraclecloud)[^/\\%]*";
    Regex::new(&format!("(?i){host}{SEPARATOR}+p{SEPARATOR}+{COMPONENT}")).ok()
});

/// Component that looks random, as tokens do. Host names may, too.
static RANDOM: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(&format!("(?i)([^/:]{SEPARATOR})[a-z0-9_+=-]{{40,}}")).ok());

/// Beginning of a URL, exact or similar, or Oracle's host.
static URL: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)://|https?:/|https?(%(25)?3a)|objectstorage\.|oraclecloud").ok());

/// `text` with everything replaced that looks like a Pre-Authenticated Request's token, a URL's login or its query.
///
/// For texts of unknown content; a value that is known to be a secret is not shown at all.
pub fn redact(text: &str) -> String {
    let shown = hide_logins(text);
    let is_url = URL.as_ref().is_none_or(|url| url.is_match(&shown));
    let mut shown = hide_pars(&shown).into_owned();
    if is_url || holds_par(&shown) {
        for pattern in [&TOKEN, &RANDOM] {
            shown = replace(pattern, &shown, &format!("${{1}}{HIDDEN}")).into_owned();
        }
    }
    // A query may be a signed URL's credential.
    match shown.split_once('?') {
        Some((before, query)) if is_url && !query.is_empty() => format!("{before}?{HIDDEN}"),
        _ => shown,
    }
}

/// `text` with the token of each Pre-Authenticated Request replaced: for complete sentences.
pub fn hide_pars(text: &str) -> Cow<'_, str> {
    replace(&TOKEN_BEFORE_NAMESPACE, text, &format!("${{1}}{HIDDEN}${{2}}"))
}

/// Returns whether `text` contains a Pre-Authenticated Request, exact or similar.
pub fn holds_par(text: &str) -> bool {
    let patterns = [&TOKEN_BEFORE_NAMESPACE, &TOKEN_AFTER_HOST];
    patterns.into_iter().any(|pattern| pattern.as_ref().is_none_or(|pattern| pattern.is_match(text)))
        || ["/p/", "/n/", "/b/"].iter().all(|part| text.contains(part))
}

/// `text` with control characters escaped: one line, without terminal sequences.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character.is_control() {
            // Writing to a String cannot fail.
            true => drop(write!(escaped, "{}", character.escape_default())),
            false => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// `text`, cut to `most_bytes` with an ellipsis: it may quote a file or a server.
pub fn shortened(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        text.truncate(text.floor_char_boundary(most_bytes));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// Replaces all matches. A pattern that failed to compile, which tests exclude, hides the whole text.
fn replace<'a>(pattern: &LazyLock<Option<Regex>>, text: &'a str, with: &str) -> Cow<'a, str> {
    pattern.as_ref().map_or(Cow::Borrowed(HIDDEN), |pattern| pattern.replace_all(text, with))
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
        // The last `@`, since a password may contain one.
        parts.push(match authority.rsplit_once('@') {
            Some((_, host)) => format!("{HIDDEN}@{host}{path}"),
            None => part.to_owned(),
        });
    }
    parts.join("://")
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
            ("/data/n/p/llama/b", "/data/n/p/llama/b"),
            ("https://host/P/s3cr3t/N/ns", "https://host/P/<redacted>/N/ns"),
            ("https://host/p//s3cr3t/n/ns", "https://host/p//<redacted>/n/ns"),
            ("https:/host/p/s3cr3t/x", "https:/host/p/<redacted>/x"),
            ("https%3A%2F%2Fhost%2Fp%2Fs3cr3t%2Fn%2Fns", "https%3A%2F%2Fhost%2Fp%2F<redacted>%2Fn%2Fns"),
            (
                "https%253A%252F%252Fhost%252Fp%252Fs3cr3t%252Fn%252Fns",
                "https%253A%252F%252Fhost%252Fp%252F<redacted>%252Fn%252Fns",
            ),
            ("objectstorage.x.oraclecloud.com/p/s3cr3t", "objectstorage.x.oraclecloud.com/p/<redacted>"),
            ("p/s3cr3t/n/ns/b/x/o/", "p/<redacted>/n/ns/b/x/o/"),
            (r"https:\\host\p\s3cr3t\n\ns", r"https:\\host\p\<redacted>\n\ns"),
            (
                "see https://host/p/s%2B3cr3t/n/ns/ and /p/s3cr3t/n/",
                "see https://host/p/<redacted>/n/ns/ and /p/<redacted>/n/",
            ),
            ("https://host/s3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3t/n/ns", "https://host/<redacted>/n/ns"),
            ("me@here", "me@here"),
        ] {
            assert_eq!(redact(text), shown, "{text}");
        }
    }
}
