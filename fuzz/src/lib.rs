//! What fuzz targets share: panics that are no findings, and mutations of JSON.

pub mod json;

use std::panic::{set_hook, take_hook};
use std::process::abort;

/// Leaves panics in source files with one of `places` in their path to the code under test, which is made to catch them. Any other ends
/// the process, as libFuzzer's own hook has it: also one that would be caught, if it comes out of this project's code.
pub fn leave_panics_in(places: &'static [&'static str]) {
    // libFuzzer's hook, which ends the process.
    let finding = take_hook();
    set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !places.iter().any(|place| file.contains(place)) {
            finding(panic);
            abort();
        }
    }));
}
