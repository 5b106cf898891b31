//! Reads slots one by one, and keeps both ledgers: what came of them, and what is wrong.

use super::choice::Choice;
use super::error::ConfigError;
use super::keys::{KEYS, Preset, Slot};
use super::origin::{Given, Origin};
use super::redaction::redact;
use super::reference::unresolved;
use super::setting::Setting;

/// The ledgers.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    settings: Vec<(usize, Setting)>,
    /// Everything that is wrong so far.
    pub errors: Vec<ConfigError>,
    /// Names of all environment variables, for the reason why a reference was not replaced.
    variables: Vec<String>,
}

impl Resolver {
    /// Starts with what was found wrong before.
    pub fn new(errors: Vec<ConfigError>, variables: Vec<String>) -> Self {
        Self { settings: Vec::new(), errors, variables }
    }

    /// The settings in the order of the keys.
    pub fn settings(&mut self) -> Vec<Setting> {
        self.settings.sort_by_key(|(position, _)| *position);
        self.settings.drain(..).map(|(_, setting)| setting).collect()
    }

    /// The value of a slot that has a default or must be given. `None`: an error was noted.
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
                // A misspelt flag was reported already, and that it is missing follows from it.
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

    /// The value of a slot that may stay open. `None`: an error was noted. `Some(None)`: nobody gave it.
    pub fn read_open<T>(
        &mut self,
        slot: &Slot,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<Option<T>> {
        self.read_or(slot, None, parse, show)
    }

    /// The same with a default that depends on other keys, if there is one.
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

    /// One of a few words, with a default.
    pub fn choose<T: Choice>(&mut self, slot: &Slot) -> Option<T> {
        self.read(slot, T::parse, |value| value.name().to_owned())
    }

    /// Whether the text of `given` can be looked at: it holds no reference that Kubernetes left standing.
    pub fn check_reference(&mut self, slot: &Slot, given: &Given) -> bool {
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

    /// Notes what came of a slot.
    pub fn note(&mut self, slot: &Slot, value: String, origin: Origin) {
        self.note_as(slot, slot.key(), value, origin);
    }

    /// The same under another name, in the slot's place.
    pub fn note_as(&mut self, slot: &Slot, key: String, value: String, origin: Origin) {
        let position = KEYS.iter().position(|(field, ..)| *field == slot.field).unwrap_or(KEYS.len());
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
