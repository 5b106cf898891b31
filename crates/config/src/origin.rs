//! Where a value came from, so that every message can say it.

use std::fmt;

/// The source of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag,
    /// An environment variable, by the name under which it was found.
    Variable(String),
    /// A part of the blueprint file, such as `recipe_container_env input-len`.
    Blueprint(String),
    /// Nobody said anything.
    Default,
}

impl Origin {
    /// One stable word for tables and files: `flag`, `variable`, `blueprint` or `default`.
    pub fn name(&self) -> &'static str {
        match self {
            Origin::Flag => "flag",
            Origin::Variable(_) => "variable",
            Origin::Blueprint(_) => "blueprint",
            Origin::Default => "default",
        }
    }

    /// Where exactly `key` was given, for a sentence.
    pub(super) fn of(&self, key: &str) -> String {
        match self {
            Origin::Flag => format!("flag --{key}"),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Blueprint(part) => write!(f, "blueprint {part}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value as text, and where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// What was given, white space at both ends removed. May hold a token: never print it as it is.
    pub text: String,
    /// By whom.
    pub origin: Origin,
}
