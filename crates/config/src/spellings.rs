//! Known secrets, cut out of whatever is about to be shown, in every spelling: the last defence behind types that do not show
//! themselves.
//!
//! Others repeat a secret in other spellings: a URL percent-encodes it, JSON and HTML escape it, a header has it in base64.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;
use regex::Regex;

use super::{Secret, hide_pars};

/// Replacements of a secret: the first one that cannot contain or complete a secret is used.
const REPLACEMENTS: [&str; 4] = ["<redacted>", "***", "\u{2588}", "\u{fffd}"];

/// Shortest secret that is searched in base64: a shorter one would be part of many words.
const SHORTEST_IN_BASE64: usize = 4;

/// The known secrets of this process. Tokens of Pre-Authenticated Requests are replaced even if unknown.
#[derive(Clone)]
pub struct Redaction {
    /// Patterns, longest secret first, so that a secret that contains another is replaced as a whole.
    spellings: Vec<Regex>,
    replacement: &'static str,
}

impl Redaction {
    /// A redaction of `secrets`; empty ones are ignored.
    pub fn new(secrets: &[Secret]) -> Self {
        let mut texts: Vec<String> = secrets.iter().map(Secret::reveal).flat_map(forms).collect();
        texts.retain(|text| !text.is_empty());
        texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        // A replacement must not complete a secret together with the text around it.
        let is_safe = |replacement: &&str| {
            let edges = [replacement.chars().next(), replacement.chars().last()];
            !texts.iter().any(|secret| {
                replacement.contains(secret.as_str()) || edges.iter().flatten().any(|edge| secret.contains(*edge))
            })
        };
        let replacement = REPLACEMENTS.into_iter().find(is_safe).unwrap_or_default();
        // If the full pattern exceeds the regex size limit, the plain text always fits.
        let pattern = |text: &String| Regex::new(&spelled(text)).or_else(|_| Regex::new(&regex::escape(text))).ok();
        Self { spellings: texts.iter().filter_map(pattern).collect(), replacement }
    }

    /// `text` without any secret.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = hide_pars(text);
        for spelling in &self.spellings {
            if spelling.is_match(&text) {
                text = Cow::Owned(spelling.replace_all(&text, regex::NoExpand(self.replacement)).into_owned());
            }
        }
        text
    }
}

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redaction({} spellings)", self.spellings.len())
    }
}

/// `text` itself, its percent-decoded form, and both alphabets of base64 without padding.
fn forms(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_owned()];
    forms.extend(percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned));
    if text.len() >= SHORTEST_IN_BASE64 {
        forms.extend([STANDARD_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(text)]);
    }
    forms
}

/// A pattern that matches `text` with each character in any spelling.
fn spelled(text: &str) -> String {
    let mut pattern = String::new();
    for character in text.chars() {
        let mut ways = vec![regex::escape(character.encode_utf8(&mut [0; 4]))];
        let bytes = character.encode_utf8(&mut [0; 4]).bytes().fold(String::new(), |mut encoded, byte| {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%(?:25)?(?i:{byte:02x})");
            encoded
        });
        ways.push(bytes);
        let number = u32::from(character);
        ways.push(format!("&#(?:0*{number}|(?i:x0*{number:x}));"));
        let units = character.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |mut units, unit| {
            let _ = write!(units, r"\\+(?i:u{unit:04x})");
            units
        });
        ways.push(units);
        ways.push(regex::escape(&character.escape_debug().to_string()));
        ways.push(regex::escape(&character.escape_default().to_string()));
        ways.extend(match character {
            ' ' => vec![r"\+".to_owned()],
            '"' => vec!["&quot;".to_owned(), r#"\\+""#.to_owned()],
            '&' => vec!["&amp;".to_owned()],
            '<' => vec!["&lt;".to_owned()],
            '>' => vec!["&gt;".to_owned()],
            '\'' => vec!["&apos;".to_owned()],
            '/' => vec![r"\\/".to_owned()],
            _ => vec![],
        });
        // Regex alternation takes the first match, so the longest comes first.
        ways.sort_by_key(|way| std::cmp::Reverse(way.len()));
        ways.dedup();
        let _ = write!(pattern, "(?:{})", ways.join("|"));
    }
    pattern
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redaction(secrets: &[&str]) -> Redaction {
        Redaction::new(&secrets.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>())
    }

    #[test]
    fn secrets_go_in_every_spelling() {
        let redaction = redaction(&["p@ss \"word\"", "tok-en_1"]);
        for (text, expected) in [
            ("nothing to hide", "nothing to hide"),
            ("at /p/tok-en_1/n/ns", "at /p/<redacted>/n/ns"),
            ("https://u:p%40ss%20%22word%22@host", "https://u:<redacted>@host"),
            (r#"Some("p@ss \"word\"")"#, r#"Some("<redacted>")"#),
            ("tok-en_1tok-en_1", "<redacted><redacted>"),
            ("p%40ss+%22word%22 p@ss%20%22word%22", "<redacted> <redacted>"),
            ("p@ss%2520%2522word%2522", "<redacted>"),
            (r#"{"said":"p\u0040ss \"word\""}"#, r#"{"said":"<redacted>"}"#),
            ("<p>p@ss &quot;word&#34; p&#x40;ss &#034;word&#x22;", "<p><redacted> <redacted>"),
            ("Basic cEBzcyAid29yZCI= cEBzcyAid29yZCI", "Basic <redacted>= <redacted>"),
            ("https://other/p/t0ken/n/ns", "https://other/p/<redacted>/n/ns"),
        ] {
            assert_eq!(redaction.apply(text), expected);
        }
    }

    #[test]
    fn a_secret_within_another_leaves_nothing_behind() {
        assert_eq!(redaction(&["abc", "abcdef"]).apply("xabcdefx abc"), "x<redacted>x <redacted>");
    }

    #[test]
    fn an_empty_secret_is_none() {
        assert_eq!(redaction(&[""]).apply("text"), "text");
    }

    #[test]
    fn a_secret_like_the_replacement_is_hidden_too() {
        assert_eq!(redaction(&["redacted"]).apply("redacted"), "***");
        assert_eq!(redaction(&["a", "a>"]).apply("aa>"), "\u{2588}\u{2588}".replace('\u{2588}', "***"));
    }

    proptest! {
        #[test]
        fn no_secret_survives(secrets in prop::collection::vec("[ab<>*]{1,4}", 1..4), text in "[ab<>*]{0,40}") {
            let redaction = redaction(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
            let shown = redaction.apply(&text).into_owned();
            for secret in &secrets {
                prop_assert!(!shown.contains(secret.as_str()), "{secret} in {shown}");
            }
        }
    }
}
