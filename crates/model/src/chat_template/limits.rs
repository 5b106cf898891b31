//! Limits of a template: length of its source, work of a rendering, length of a text, depth of what a namespace keeps.
//!
//! Each is far above the needs of conversations, and low enough that a rendering within it ends after a second or two.

use std::fmt::{self, Write};

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::python::refused;

/// Longest source in bytes. The longest of real models have some 30 KiB.
pub(super) const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Work of one rendering, in minijinja's fuel: an instruction, or 64 bytes that are made or searched.
pub(super) const FUEL: u64 = 10_000_000;

/// Longest rendered text in bytes: a prompt of some four million tokens.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 20;

/// Deepest nesting of lists in a namespace: printing, comparing and freeing take stack for each level.
const MAX_KEPT_DEPTH: usize = 256;

/// A text that is refused once it exceeds [`MAX_TEXT_BYTES`].
#[derive(Default)]
pub(super) struct Bounded {
    text: String,
}

impl Bounded {
    /// The text, unless it was refused.
    pub fn written(self, written: fmt::Result) -> Result<String, Error> {
        written.map(|()| self.text).map_err(|_| too_long())
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > MAX_TEXT_BYTES {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// `value` as a template prints it.
pub(super) fn printed(value: &Value) -> Result<String, Error> {
    let mut text = Bounded::default();
    let written = write!(text, "{value}");
    text.written(written)
}

/// `value` as Python's `repr` shows it.
pub(super) fn debugged(value: &Value) -> Result<String, Error> {
    let mut text = Bounded::default();
    let written = write!(text, "{value:?}");
    text.written(written)
}

/// Refuses a text of `bytes` bytes before it is made, if that is too long.
pub(super) fn check_length(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEXT_BYTES { Err(too_long()) } else { Ok(()) }
}

fn too_long() -> Error {
    refused(format!("it makes a text of more than {MAX_TEXT_BYTES} bytes"))
}

/// Passes on a value that a namespace is to keep.
///
/// A namespace that is reachable from itself would be printed, compared and traversed without end, and unlimited
/// nesting would overflow the stack. Only namespaces are mutable, so their values are checked on every assignment.
pub(super) fn kept(state: &State, value: &Value) -> Result<Value, Error> {
    visit(state, value, 0)?;
    Ok(value.clone())
}

fn visit(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    // Traversal is work as well: each value costs fuel.
    state.consume_fuel(1)?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if depth > MAX_KEPT_DEPTH {
        return Err(refused(format!("a namespace keeps at most {MAX_KEPT_DEPTH} lists in lists")));
    }
    // minijinja has no public type for it; its name is the only way to tell.
    if value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace")) {
        return Err(refused("a namespace keeps no other namespace, nor itself"));
    }
    for item in value.try_iter()? {
        visit(state, &item, depth + 1)?;
        if value.kind() == ValueKind::Map {
            visit(state, &value.get_item(&item)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Items of `value` as a list, each paid for in fuel.
pub(super) fn listed(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()? {
        state.consume_fuel(1)?;
        items.push(item);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use time::OffsetDateTime;

    use super::*;
    use crate::ChatTemplate;

    fn refusal(source: &str) -> String {
        let template = ChatTemplate::new(Path::new("t"), source, BTreeMap::new(), OffsetDateTime::UNIX_EPOCH);
        template.render(&[]).unwrap_err().to_string()
    }

    #[test]
    fn work_that_leaves_little_behind_is_paid_for() {
        let often = |work: &str| {
            format!("{{% set x = 'aB' * 500000 %}}{{% for i in range(100000) %}}{{% set y = {work} %}}{{% endfor %}}")
        };
        for work in ["'%.0s' % x", "'%.1r' % [x]", "{x: 1} | dictsort", "{'a': x} | dictsort(by='value')"] {
            let refused = refusal(&often(work));
            assert!(refused.contains("it works without an end, or makes too much"), "{work}: {refused}");
        }
    }

    /// Each took ten seconds and more while a tag was looked for up to the end of the source, and each remainder moved the ones
    /// before it.
    #[test]
    fn a_source_is_compiled_in_the_time_that_its_length_takes() {
        let long = |piece: &str| piece.repeat(MAX_SOURCE_BYTES / piece.len());
        let spaces = " ".repeat(MAX_SOURCE_BYTES / 2 - 100);
        for source in [
            long("{%for "),
            long("{%block "),
            long("{%set a.b="),
            long("{%raw%}{%endraw"),
            format!("{{{{ {} }}}}", &long("1%")[..MAX_SOURCE_BYTES - 10]),
            format!("{{{{ 1 -{spaces}{} }}}}", "+".repeat(spaces.len())),
            format!("{{{{ {}{spaces} }}}}", "+".repeat(spaces.len())),
        ] {
            let started = Instant::now();
            let refused = refusal(&source);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(5), "{took:?} for {}: {refused}", &source[..20]);
        }
    }
}
