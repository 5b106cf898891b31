//! Fixtures with one thing changed.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use flashjob_model::{Model, Texts};
use serde_json::Value;
use tempfile::TempDir;

use super::golden;

/// A model with its texts.
#[derive(Debug)]
pub struct Checkpoint {
    /// Configuration and weights.
    pub model: Model,
    /// Tokenizer and chat template.
    pub texts: Texts,
}

impl Checkpoint {
    /// Opens both.
    ///
    /// # Errors
    /// A file that is missing or wrong.
    pub fn open(model: &Path, tokenizer: &Path) -> Result<Self, flashjob_model::Error> {
        Ok(Self { model: Model::open(model)?, texts: Texts::open(model, tokenizer)? })
    }
}

impl Deref for Checkpoint {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// A copy of a fixture's directory.
pub struct Altered {
    directory: TempDir,
}

impl Altered {
    /// A copy of `fixture`.
    pub fn of(fixture: &str) -> Self {
        let directory = TempDir::new().unwrap();
        // Copied, as the fixtures are committed and other tests read them meanwhile.
        for entry in std::fs::read_dir(golden::directory(fixture)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
        Self { directory }
    }

    /// The model's directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), contents).unwrap();
    }

    /// The contents of a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.read(name)).unwrap();
        edit(&mut json);
        self.write(name, json.to_string());
    }

    /// Makes the embedding of `token`, of a model whose weights have 16 bits, no numbers. Where the head is not tied to it, no
    /// other token is changed.
    pub fn spoil_embedding(&self, token: u32) {
        let mut bytes = self.read("model.safetensors");
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let described: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let tensor = &described["model.embed_tokens.weight"];
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let row_bytes = number(&tensor["shape"][1]) * size_of::<u16>();
        let row = 8 + header + number(&tensor["data_offsets"][0]) + token as usize * row_bytes;
        bytes[row..row + row_bytes].fill(0xff);
        self.write("model.safetensors", bytes);
    }

    /// Opens the model and its texts.
    ///
    /// # Errors
    /// What the change has done.
    pub fn open(&self) -> Result<Checkpoint, flashjob_model::Error> {
        Checkpoint::open(self.path(), self.path())
    }

    /// Error on opening it.
    pub fn refusal(&self) -> String {
        let text = self.open().expect_err("it should not open").to_string();
        assert!(text.lines().count() == 1 && text.len() < 2000, "an error is a sentence or two: {text}");
        text
    }
}

/// Every part of `parts` is in `text`.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
