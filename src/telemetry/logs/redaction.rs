//! The last defence of secrets: texts that are cut out of whatever is about to be shown.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Secret;

/// What stands where a secret stood: the first of these that cannot itself hold or complete one.
const REPLACEMENTS: [&str; 4] = ["<redacted>", "***", "\u{2588}", "\u{fffd}"];

/// All but RFC 3986's unreserved characters.
const URL_TEXT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Knows the secrets of this process, as they are and as URLs and `{:?}` spell them.
pub struct Redaction {
    /// Longest first, so that a secret that holds another goes as a whole.
    spellings: Vec<String>,
    replacement: &'static str,
}

impl Redaction {
    /// Registers `secrets`; empty ones are no secrets.
    pub fn new(secrets: &[Secret]) -> Self {
        let mut spellings: Vec<String> = secrets
            .iter()
            .map(Secret::reveal)
            .filter(|text| !text.is_empty())
            .flat_map(|text| {
                let quoted = format!("{text:?}");
                [
                    text.to_owned(),
                    utf8_percent_encode(text, URL_TEXT).to_string(),
                    quoted[1..quoted.len() - 1].to_owned(),
                ]
            })
            .collect();
        spellings.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        spellings.dedup();
        // A secret could arise anew across the edge of a replacement only if it held the character there.
        let is_safe = |replacement: &&str| {
            let edges = [replacement.chars().next(), replacement.chars().last()];
            !spellings.iter().any(|secret| {
                replacement.contains(secret.as_str()) || edges.iter().flatten().any(|edge| secret.contains(*edge))
            })
        };
        let replacement = REPLACEMENTS.into_iter().find(is_safe).unwrap_or_default();
        Self { spellings, replacement }
    }

    /// `text` without any secret.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for spelling in &self.spellings {
            if text.contains(spelling.as_str()) {
                text = Cow::Owned(text.replace(spelling.as_str(), self.replacement));
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
