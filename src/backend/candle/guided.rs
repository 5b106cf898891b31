//! Grammars behind the engine's interface for constraints.

use flashjob_engine::{ConstrainedText, Constraint};
use flashjob_guidance::{Matcher, Progress};

use crate::backend::text_options::Guided;

impl Constraint for Guided {
    fn begin(&self, thread: usize) -> Result<Box<dyn ConstrainedText>, String> {
        let compiled = self.compiler.compile(&self.grammar).map_err(|error| error.to_string())?;
        Ok(Box::new(GuidedText(compiled.begin(thread))))
    }
}

/// A text of a grammar.
struct GuidedText(Matcher);

impl ConstrainedText for GuidedText {
    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        self.0.allowed(mask).map_err(|error| error.to_string())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.0.accept(token).map(|progress| progress == Progress::Complete).map_err(|error| error.to_string())
    }
}
