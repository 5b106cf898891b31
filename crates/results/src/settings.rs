//! The configuration of a run as it stands in its result: texts without secrets.

use serde::{Deserialize, Deserializer};

use super::limits;

/// Settings of one run at most: there are some 60 keys.
const MOST_SETTINGS: usize = 1000;

/// One key of the configuration with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Key of the configuration.
    pub key: String,
    /// Value as it is shown to people.
    pub value: String,
    /// `default`, `flag`, `environment`, `blueprint` or another source.
    pub origin: String,
}

/// All settings of a run, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Vec<Setting>);

impl Settings {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|setting| setting.key == key).map(|setting| setting.value.as_str())
    }

    /// All settings, one after another.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Content {
            value: String,
            origin: String,
        }
        // The key stands outside of its value in the file.
        let settings = limits::map::<_, Content, MOST_SETTINGS>(deserializer)?;
        let settings = settings.into_iter().map(|(key, Content { value, origin })| Setting { key, value, origin });
        Ok(Self(settings.collect()))
    }
}
