//! The configuration as people see it: key, value, origin; no secrets.

use std::fmt;

use super::Origin;

/// One line of the resolved configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, words separated by `-`.
    pub key: String,
    /// Resolved value with secrets redacted, or words for a decision that is made later.
    pub value: String,
    /// Source of the value.
    pub origin: Origin,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.value, self.origin)
    }
}
