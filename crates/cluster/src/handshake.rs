//! Settings that all nodes must have alike: compared name by name before a weight is read.

use std::collections::{BTreeMap, BTreeSet};

use md5::{Digest, Md5};

use flashjob_engine::NodeSettings;
use flashjob_model::{Dtype, Error, Model, Shard, TensorName, Validation};

/// Settings by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Handshake(BTreeMap<String, String>);

impl Handshake {
    /// `settings`, this program's version, and a text that stands for `model`.
    ///
    /// # Errors
    /// [`Error`] of the vector of `model` that is read for it.
    pub fn new(model: &Model, settings: &NodeSettings) -> Result<Self, Error> {
        let own = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("model", identity(model)?)];
        let given = settings.iter().map(|(&name, value)| (name, value.clone()));
        Ok(Self(own.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// Every difference as `name is … there and … here`.
    pub fn differences(&self, theirs: &Handshake) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(theirs.0.keys()).collect();
        let of = |handshake: &Handshake, name: &String| match handshake.0.get(name) {
            Some(value) => format!("`{}`", shortened(value)),
            None => "unknown".to_owned(),
        };
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != theirs.0.get(*name))
            .map(|name| format!("{} is {} there and {} here", shortened(name), of(theirs, name), of(self, name)))
            .collect()
    }
}

/// A peer's text in a sentence of ours.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

/// A text that two models share only if they are the same one: shapes, sizes of all files and the last vector of weights.
///
/// # Errors
/// [`Error`] of that vector.
fn identity(model: &Model) -> Result<String, Error> {
    // A few kilobytes that training has changed: two checkpoints of one architecture differ there, and reading all would take
    // as long as loading.
    let norm = model.weights.read(TensorName::FinalNorm, Shard::WHOLE, Dtype::F32, Validation::Trust)?;
    let norm = norm.to_vec1::<f32>().unwrap_or_default();
    let mut hasher = Md5::new();
    hasher.update(format!("{:?} {}", model.config, model.weights.total_bytes()));
    hasher.update(bytemuck::cast_slice::<f32, u8>(&norm));
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{} {hash}", model.architecture))
}
