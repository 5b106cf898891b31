//! One key with the value that the strongest source gave for it, or its behaviour without one. It knows no key by name.

use flashjob_config::Origin;

/// Behaviour of a key that was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    /// This text, read by the same parser as a given one.
    Text(&'static str),
    /// Decided later or elsewhere; the words say how.
    Decided(&'static str),
    /// There must be a value.
    Required,
}

/// Sources that may give a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Flags, variables in three spellings, and blueprints.
    Everyone,
    /// One variable with exactly this name, as MLflow or Kubernetes calls it (also out of a blueprint's variables).
    Variable(&'static str),
}

/// One key with what was given for it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The field's name, words separated by `_`.
    pub field: &'static str,
    /// Value or behaviour if the key was not given.
    pub preset: Preset,
    /// Value of the source with the highest precedence.
    pub given: Option<Given>,
}

impl Slot {
    /// The key as it is written in messages.
    pub fn key(&self) -> String {
        super::keys::shown(self.field)
    }
}

/// A value as text, and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// The given text without white space at both ends. May contain a token: never print it unredacted.
    pub text: String,
    /// Source of the text.
    pub origin: Origin,
}
