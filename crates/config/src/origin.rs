//! Source of a value, for messages.

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
    /// The sweep, of which this is one combination.
    Sweep,
    /// The default, as no source gave the key.
    Default,
}

impl Origin {
    /// One stable word for tables and files: `flag`, `variable`, `blueprint`, `sweep` or `default`.
    pub fn name(&self) -> &'static str {
        match self {
            Origin::Flag => "flag",
            Origin::Variable(_) => "variable",
            Origin::Blueprint(_) => "blueprint",
            Origin::Sweep => "sweep",
            Origin::Default => "default",
        }
    }

    /// Description of the place where `key` was given, for a sentence.
    pub fn of(&self, key: &str) -> String {
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
            Origin::Sweep => f.write_str("sweep"),
            Origin::Default => f.write_str("default"),
        }
    }
}
