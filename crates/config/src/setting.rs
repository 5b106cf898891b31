//! The configuration as people see it: key, value, origin; no secrets.

use std::fmt;

use super::Origin;

/// One line of the resolved configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, words separated by `-`.
    pub key: String,
    /// What it came to, secrets redacted. For what is decided later, words that say how.
    pub value: String,
    /// Who gave it.
    pub origin: Origin,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.value, self.origin)
    }
}
