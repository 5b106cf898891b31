//! Names as MLflow takes them: at most 250 of `A-Z a-z 0-9 _ - . : /` and space, and a path that is already
//! normal (`mlflow/utils/validation.py`, 3.17). What is not becomes `_`, and two names never become one.

use std::collections::{HashMap, HashSet};

/// MLflow's limit on the length of a key, in characters.
const LONGEST_KEY: usize = 250;

/// Unique keys for one kind of entity (metrics, params, tags). Deterministic: the same names in the same order always
/// give the same keys, so that a run sent again changes nothing.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashSet<String>,
    given: HashMap<String, String>,
}

impl Names {
    /// The key under which `original` is sent.
    pub(super) fn key(&mut self, original: &str) -> String {
        if let Some(known) = self.given.get(original) {
            return known.clone();
        }
        let base = allowed(original);
        // Different names may become equal by replacement; a number tells them apart.
        let key = std::iter::once(base.clone())
            .chain((2..).map(|number| {
                let suffix = format!("_{number}");
                let kept = base.len().min(LONGEST_KEY - suffix.len());
                format!("{}{suffix}", &base[..kept])
            }))
            // In order of arrival: the same names in the same order give the same keys.
            .find(|candidate| !self.taken.contains(candidate))
            .unwrap_or(base);
        self.taken.insert(key.clone());
        self.given.insert(original.to_owned(), key.clone());
        key
    }
}

/// `original` with all characters replaced that MLflow refuses; ASCII.
fn allowed(original: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.:/ ".contains(c) { c } else { '_' };
    let text: String = original.chars().map(plain).take(LONGEST_KEY).collect();
    // MLflow reads keys as paths: each component must survive normalisation.
    let parts: Vec<&str> =
        text.split('/').map(|part| if matches!(part, "" | "." | "..") { "_" } else { part }).collect();
    let mut key = parts.join("/");
    // `..x` is a legal component, but MLflow refuses keys that begin like a parent directory.
    if key.starts_with("..") {
        key.replace_range(..1, "_");
    }
    if key.len() > LONGEST_KEY {
        key.truncate(LONGEST_KEY);
        // The truncation may have left a slash or dot at the end.
        key.truncate(key.trim_end_matches(['/', '.']).len());
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_changed_only_where_they_must_be() {
        for (original, key) in [
            ("total_token_throughput", "total_token_throughput"),
            ("system/gpu_0_power_usage_watts", "system/gpu_0_power_usage_watts"),
            ("ttft p99 [ms]", "ttft p99 _ms_"),
            ("größe", "gr__e"),
            ("", "_"),
            (".", "_"),
            ("..", "_"),
            ("...", "_.."),
            ("/a", "_/a"),
            ("a/", "a/_"),
            ("a//b", "a/_/b"),
            ("a/../b", "a/_/b"),
            ("./a", "_/a"),
            ("..a/..b", "_.a/..b"),
            (" a ", " a "),
        ] {
            assert_eq!(Names::default().key(original), key, "{original}");
        }
        assert_eq!(Names::default().key(&"k".repeat(300)).len(), 250);
    }

    #[test]
    fn two_names_never_become_one() {
        let mut names = Names::default();
        assert_eq!(names.key("a%"), "a_");
        assert_eq!(names.key("a$"), "a__2");
        assert_eq!(names.key("a_"), "a__3");
        assert_eq!(names.key("a%"), "a_");
        let long = "k".repeat(250);
        assert_eq!(names.key(&long), long);
        assert_eq!(names.key(&format!("{long}x")), format!("{}_2", &long[..248]));
    }

    /// The server's rule in Rust: Python's `posixpath.normpath` leaves it as it is, and it stays inside.
    fn is_accepted(key: &str) -> bool {
        let mut normal: Vec<&str> = Vec::new();
        for part in key.split('/') {
            match part {
                "" | "." => {}
                ".." if normal.last().is_some_and(|last| *last != "..") => drop(normal.pop()),
                part => normal.push(part),
            }
        }
        let characters = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:/ ".contains(&b));
        characters && !key.is_empty() && key.len() <= 250 && normal.join("/") == key && !key.starts_with("..")
    }

    proptest! {
        #[test]
        fn every_text_becomes_a_name_that_the_server_takes(texts in proptest::collection::vec(
            prop_oneof!["[./a]{0,12}", "\\PC{0,12}", "[./a]{248,255}"], 1..20,
        )) {
            let mut names = Names::default();
            let mut back = HashMap::new();
            for text in &texts {
                let key = names.key(text);
                prop_assert!(is_accepted(&key), "{} -> {}", text, key);
                prop_assert_eq!(back.entry(key).or_insert(text), &text);
            }
        }
    }
}
