//! Reads slots one by one, and keeps both ledgers: what came of them, and what is wrong.

use flashjob_config::{Choice, Origin, Setting, redact};

use super::error::ConfigError;
use super::keys::KEYS;
use super::parsing;
use super::reference::unresolved;
use super::slot::{Given, Preset, Slot};

/// Settings and errors so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver {
    settings: Vec<(usize, Setting)>,
    /// Errors found so far.
    pub errors: Vec<ConfigError>,
    /// Names of all environment variables, to explain why a reference was not replaced.
    variables: Vec<String>,
}

impl Resolver {
    /// A resolver with errors that were found earlier.
    pub fn new(errors: Vec<ConfigError>, variables: Vec<String>) -> Self {
        Self { settings: Vec::new(), errors, variables }
    }

    /// The settings in the order of the keys.
    pub fn settings(&mut self) -> Vec<Setting> {
        // In the order of the table of keys, not in that of reading: the log is then the same for every job.
        self.settings.sort_by_key(|(position, _)| *position);
        self.settings.drain(..).map(|(_, setting)| setting).collect()
    }

    /// Value of a key that has a default or is required. `None`: an error was recorded.
    pub fn read<T>(
        &mut self,
        slot: &Slot,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let given = match (&slot.given, slot.preset) {
            (Some(given), _) => given.clone(),
            (None, Preset::Text(text)) => Given { text: text.to_owned(), origin: Origin::Default },
            (None, Preset::Required | Preset::Decided(_)) => {
                // A misspelt flag was reported already; that the key is missing follows from it.
                let flag = format!("--{}", slot.key());
                let misspelt = |error: &ConfigError| matches!(error, ConfigError::UnknownFlag { nearest: Some(nearest), .. } if *nearest == flag);
                if !self.errors.iter().any(misspelt) {
                    self.errors.push(ConfigError::Missing { key: slot.key() });
                }
                return None;
            }
        };
        self.parse(slot, &given, parse, show)
    }

    /// Value of an optional key. `None`: an error was recorded. `Some(None)`: the key was not given.
    pub fn read_open<T>(
        &mut self,
        slot: &Slot,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<Option<T>> {
        self.read_or(slot, None, parse, show)
    }

    /// Value of a key whose default depends on other keys, if there is one.
    pub fn read_or<T>(
        &mut self,
        slot: &Slot,
        default: Option<T>,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<Option<T>> {
        if let Some(given) = &slot.given {
            return self.parse(slot, given, parse, show).map(Some);
        }
        match (&default, slot.preset) {
            (Some(value), _) => self.note(slot, show(value), Origin::Default),
            (None, Preset::Decided(words)) => self.note(slot, words.to_owned(), Origin::Default),
            (None, _) => {}
        }
        Some(default)
    }

    /// Value of a key with a few allowed words and a default.
    pub fn choose<T: Choice>(&mut self, slot: &Slot) -> Option<T> {
        self.read(slot, parsing::choice, |value: &T| value.name().to_owned())
    }

    /// Value of a variable that Kubernetes sets, shown as `shown_as`; an empty one counts as unset. `None`: an error was
    /// recorded.
    pub fn variable<T: ToString>(
        &mut self,
        slot: &Slot,
        shown_as: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some(given @ Given { text, origin }) = slot.given.as_ref().filter(|given| !given.text.is_empty()) else {
            return Some(None);
        };
        if !self.check_reference(slot, given) {
            return None;
        }
        match parse(text) {
            Ok(value) => {
                self.note_as(slot, shown_as.to_owned(), value.to_string(), origin.clone());
                Some(Some(value))
            }
            Err(clause) => {
                self.errors.push(ConfigError::value(&slot.field.to_uppercase(), text, origin, clause));
                None
            }
        }
    }

    /// Returns whether the text of `given` can be parsed: it has no reference that Kubernetes left unreplaced.
    pub fn check_reference(&mut self, slot: &Slot, given: &Given) -> bool {
        // Kubernetes leaves `$(NAME)` as it is where the variable is missing; the text itself is never meant.
        let Some(variable) = unresolved(&given.text) else { return true };
        let reason = match &given.origin {
            Origin::Blueprint(_) => {
                format!("recipe_container_env has no `{variable}`; add it there, or write the value itself")
            }
            _ if self.variables.iter().any(|name| name == variable) => format!(
                "the variable is set, but only Kubernetes puts it in; write the value itself, or leave --{} out",
                slot.key()
            ),
            _ => format!("there is no environment variable `{variable}`; set it, or write the value itself"),
        };
        let (key, origin) = (slot.key(), given.origin.of(&slot.key()));
        self.errors.push(ConfigError::Unresolved { key, variable: variable.to_owned(), origin, reason });
        false
    }

    /// Records the resolved value of a key.
    pub fn note(&mut self, slot: &Slot, value: String, origin: Origin) {
        self.note_as(slot, slot.key(), value, origin);
    }

    /// Records a value under another name, in the key's place.
    pub fn note_as(&mut self, slot: &Slot, key: String, value: String, origin: Origin) {
        let position = KEYS.iter().position(|(field, ..)| *field == slot.field).unwrap_or(KEYS.len());
        // Redacted here, the only place that settings come from: no caller can forget it.
        self.settings.push((position, Setting { key, value: redact(&value), origin }));
    }

    fn parse<T>(
        &mut self,
        slot: &Slot,
        given: &Given,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        if !self.check_reference(slot, given) {
            return None;
        }
        match parse(&given.text) {
            Ok(value) => {
                self.note(slot, show(&value), given.origin.clone());
                Some(value)
            }
            Err(clause) => {
                self.errors.push(ConfigError::value(&slot.key(), &given.text, &given.origin, clause));
                None
            }
        }
    }
}
