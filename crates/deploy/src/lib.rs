//! An AI Blueprint, judged and turned into manifests that run elsewhere: a Kubernetes Job, a compose file, a `docker run`.
//!
//! Text in, text out. [`validate`] holds a blueprint to the platform's own schema and to what the schema cannot say, each
//! finding with its line and column. [`render()`] uses each key or lists it: what has no counterpart is never dropped in
//! silence. It does not know what a job does with its settings; that is `config`'s.

mod compose;
mod docker;
mod document;
mod kubernetes;
mod recipe;
mod render;
mod rules;
mod schema;
mod yaml;

use std::fmt;

pub use recipe::LeftOut;
pub use render::{Format, RenderError, Rendered, render};

/// Position in a text, both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line number from 1.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
}

/// Something that is wrong with a blueprint. Holds no PAR's token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Position of the finding.
    pub place: Place,
    /// Under which name, such as `recipe_container_env[2].value`; empty for the whole.
    pub at: String,
    /// Fault, with what is allowed.
    pub problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { place: Place { line, column }, at, problem } = self;
        let at = if at.is_empty() { "the file" } else { at };
        write!(f, "line {line}, column {column}: {at} {problem}")
    }
}

/// Summary of a valid blueprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs a container once.
    Job,
    /// It makes nodes that other blueprints run on, and runs nothing.
    SharedNodePool,
    /// Something else that the platform deploys.
    Other,
}

/// Everything that is wrong with the blueprint in `text`, in the order in which it stands there; or what it is.
///
/// # Errors
/// At least one finding.
pub fn validate(text: &str) -> Result<Kind, Vec<Finding>> {
    let document = document::read(text).map_err(|finding| vec![finding])?;
    // Both sets of rules run even if the first finds something: all faults are reported at once.
    let mut findings = schema::check(&document);
    findings.extend(rules::check(&document));
    // The same fault may be found by schema and rules.
    findings.sort();
    findings.dedup();
    if !findings.is_empty() {
        return Err(findings);
    }
    Ok(match document.member("recipe_mode").and_then(|mode| mode.text()) {
        Some("job") => Kind::Job,
        Some("shared_node_pool") => Kind::SharedNodePool,
        _ => Kind::Other,
    })
}
