//! `flashjob report DIR`: renders the page of a results directory again.

use std::path::Path;

use super::{Exit, exit, terminal};
use crate::report::ResultsDirectory;

/// Renders `report.html` in `directory`, and says where it is.
pub fn report(directory: &Path) -> Exit {
    match ResultsDirectory::render_again(directory) {
        Ok(page) => terminal::tell(&page.display().to_string()),
        Err(error) => exit::before_log(Exit::Configuration, &error.to_string()),
    }
}
