//! Environment variables → [`Texts`]. The variables are handed in, never read from the process.

use std::collections::BTreeMap;
use std::ffi::OsString;

use flashjob_config::Origin;

use super::error::ConfigError;
use super::keys::{KEYS, Raw, Texts};
use super::quoting::quoted_value;
use super::slot::Reach;

/// Texts of the variables, with the origin of each.
#[derive(Debug, Default)]
pub(super) struct Environment {
    texts: Texts,
    origins: BTreeMap<&'static str, Origin>,
}

impl Environment {
    /// Fills keys that `raw` lacks.
    pub fn fill(self, raw: &mut Raw) {
        raw.fill(self.texts, |field| self.origins.get(field).cloned().unwrap_or(Origin::Default));
    }
}

/// The key for a variable called `name`, if there is one: `a-b`, `a_b` or `A_B`, without mixtures.
fn field(name: &str) -> Option<&'static str> {
    KEYS.iter()
        .find(|(field, _, reach)| match reach {
            Reach::Everyone => name == *field || name == field.replace('_', "-") || name == field.to_uppercase(),
            Reach::Variable(variable) => name == *variable,
        })
        .map(|(field, _, _)| *field)
}

/// Returns whether a variable is a Kubernetes service link: a service called `metrics` becomes
/// `METRICS_PORT=tcp://10.0.0.1:80` in every container of its namespace.
fn is_service_link(field: &str, text: &str) -> bool {
    field.ends_with("_port") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Reads `variables`; `origin` turns a variable's name into its name in messages.
pub(super) fn read(
    variables: impl Iterator<Item = (OsString, OsString)>,
    origin: impl Fn(&str) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Environment {
    let mut found: BTreeMap<&'static str, (String, String)> = BTreeMap::new();
    let mut twice: Vec<&'static str> = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().map(str::to_owned) else { continue };
        let Some(field) = field(&name) else { continue };
        let key = field.replace('_', "-");
        let text = match value.into_string() {
            Ok(text) => text,
            Err(value) => {
                let shown = quoted_value(&key, &value.to_string_lossy());
                errors.push(ConfigError::NotUtf8 { what: origin(&name).of(&key), shown });
                continue;
            }
        };
        // Helm charts write `INPUT_LEN=""` for unset values.
        if text.trim().is_empty() || is_service_link(field, &text) {
            continue;
        }
        // By key, as three spellings of a name are one.
        match found.get(field) {
            Some((first_name, first)) if *first != text => {
                // Two spellings of one key with different values: neither has precedence.
                if !twice.contains(&field) {
                    twice.push(field);
                    let say =
                        |name: &str, text: &str| format!("{} ({})", quoted_value(&key, text), origin(name).of(name));
                    let (first, second) = (say(first_name, first), say(&name, &text));
                    errors.push(ConfigError::Twice { key: key.clone(), first, second });
                }
            }
            Some(_) => {}
            None => {
                found.insert(field, (name, text));
            }
        }
    }
    let pairs = found.iter().map(|(field, (_, text))| ((*field).to_owned(), text.clone()));
    match envy::from_iter(pairs) {
        Ok(texts) => {
            Environment { texts, origins: found.iter().map(|(field, (name, _))| (*field, origin(name))).collect() }
        }
        Err(error) => {
            errors.push(ConfigError::Usage(format!("the environment cannot be read: {error}")));
            Environment::default()
        }
    }
}
