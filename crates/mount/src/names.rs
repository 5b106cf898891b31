//! Object names as paths, and the reasons why some cannot be paths.
//!
//! Object names are flat UTF-8 texts of 1 to 1024 bytes; a path is a sequence of components that a kernel
//! resolves. The two meet where every component is one that `open(2)` would take literally.

use std::collections::BTreeMap;
use std::fmt;

use flashjob_bucket as bucket;

/// Directory in a mount location that marks a copy and holds its incomplete files.
pub(super) const MARKER: &str = ".flashjob-copy";

/// The longest path component that Linux file systems and libc agree on (`NAME_MAX`).
const LONGEST_COMPONENT_BYTES: usize = 255;

/// Path at which an object appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A file at this path.
    File(&'a str),
    /// A directory at this path, as the name ended in `/`.
    Directory(&'a str),
}

/// Reason why an object is not shown as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hidden {
    /// `a//b`, `/a`: a path cannot name an empty component.
    EmptyComponent,
    /// `./x`, `a/../x`: the kernel would resolve it to another object's path.
    DotComponent,
    /// A component above 255 bytes.
    LongComponent,
    /// A NUL, which ends a path.
    Nul,
    /// A line break, or more than 1024 bytes: no request can contain such a name.
    Unaskable,
    /// Below the directory of a copy's incomplete files, with which it would collide.
    OfTheCopy,
    /// `blue` beside `blue/x`: one path cannot be a file and a directory; the directory is shown.
    ShadowedByDirectory,
    /// `dir/` with bytes in it: shown as a directory, its bytes cannot be.
    MarkerWithContent,
    /// The listing has the name twice.
    Duplicate,
}

impl Hidden {
    /// The reason in words, after a number of objects.
    pub fn reason(self) -> &'static str {
        match self {
            Hidden::EmptyComponent => "with an empty path component",
            Hidden::DotComponent => "with `.` or `..` as a path component",
            Hidden::LongComponent => "with a path component above 255 bytes",
            Hidden::Nul => "with a NUL in the name",
            Hidden::Unaskable => "with a name that cannot be asked for (a line break, or above 1024 bytes)",
            Hidden::OfTheCopy => "in the place of the folder that a copy works in",
            Hidden::ShadowedByDirectory => "named like a directory that exists too",
            Hidden::MarkerWithContent => "whose name ends in `/` but that are not empty",
            Hidden::Duplicate => "listed more than once",
        }
    }
}

/// The path of the object called `name`.
pub fn place(name: &str) -> Result<Place<'_>, Hidden> {
    let (path, is_directory) = match name.strip_suffix('/') {
        Some(path) => (path, true),
        None => (name, false),
    };
    if path.contains('\0') {
        return Err(Hidden::Nul);
    }
    // Case-insensitive file systems would take them for the same name.
    if path.split('/').next().is_some_and(|first| first.eq_ignore_ascii_case(MARKER)) {
        return Err(Hidden::OfTheCopy);
    }
    for component in path.split('/') {
        match component {
            "" => return Err(Hidden::EmptyComponent),
            "." | ".." => return Err(Hidden::DotComponent),
            long if long.len() > LONGEST_COMPONENT_BYTES => return Err(Hidden::LongComponent),
            _ => {}
        }
    }
    askable(name)?;
    Ok(if is_directory { Place::Directory(path) } else { Place::File(path) })
}

/// Checks that a request can contain the name.
pub(super) fn askable(name: &str) -> Result<(), Hidden> {
    bucket::name_fault(name).map_or(Ok(()), |_| Err(Hidden::Unaskable))
}

/// Numbers of hidden objects by reason, with one example each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HiddenObjects {
    reasons: BTreeMap<Hidden, (usize, String)>,
}

impl HiddenObjects {
    /// Adds one hidden object.
    pub fn add(&mut self, reason: Hidden, name: &str) {
        let (count, _) = self.reasons.entry(reason).or_insert_with(|| (0, example(name)));
        *count += 1;
    }

    /// Number of hidden objects.
    pub fn count(&self) -> usize {
        self.reasons.values().map(|(count, _)| count).sum()
    }

    /// Number of objects hidden for `reason`.
    pub fn count_of(&self, reason: Hidden) -> usize {
        self.reasons.get(&reason).map_or(0, |(count, _)| *count)
    }
}

/// At most 60 characters of a name, with control characters made visible.
fn example(name: &str) -> String {
    let mut shown: String = name.chars().take(60).flat_map(char::escape_debug).collect();
    if name.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

impl fmt::Display for HiddenObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (reason, (count, example))) in self.reasons.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{count} {} (such as `{example}`)", reason.reason())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_or_says_why_not() {
        let long = "x".repeat(256);
        let longest = "x".repeat(255);
        let too_long = "x/".repeat(512) + "x";
        for (name, expected) in [
            ("a", Ok(Place::File("a"))),
            ("a/b c/ü?#%+&.bin", Ok(Place::File("a/b c/ü?#%+&.bin"))),
            ("dir/", Ok(Place::Directory("dir"))),
            ("...", Ok(Place::File("..."))),
            (".hidden/..x", Ok(Place::File(".hidden/..x"))),
            (longest.as_str(), Ok(Place::File(longest.as_str()))),
            ("", Err(Hidden::EmptyComponent)),
            ("/", Err(Hidden::EmptyComponent)),
            ("/a", Err(Hidden::EmptyComponent)),
            ("a//b", Err(Hidden::EmptyComponent)),
            ("a//", Err(Hidden::EmptyComponent)),
            ("./x", Err(Hidden::DotComponent)),
            ("a/../x", Err(Hidden::DotComponent)),
            ("..", Err(Hidden::DotComponent)),
            ("a/./", Err(Hidden::DotComponent)),
            (long.as_str(), Err(Hidden::LongComponent)),
            ("a\0b", Err(Hidden::Nul)),
            ("a\nb", Err(Hidden::Unaskable)),
            ("a/b\r/", Err(Hidden::Unaskable)),
            (too_long.as_str(), Err(Hidden::Unaskable)),
            (".flashjob-copy", Err(Hidden::OfTheCopy)),
            (".flashjob-copy/", Err(Hidden::OfTheCopy)),
            (".flashjob-copy/partial/2", Err(Hidden::OfTheCopy)),
            (".FlashJob-Copy/partial/2", Err(Hidden::OfTheCopy)),
            ("a/.flashjob-copy", Ok(Place::File("a/.flashjob-copy"))),
            (".flashjob-copy2", Ok(Place::File(".flashjob-copy2"))),
        ] {
            assert_eq!(place(name), expected, "{name:?}");
        }
    }

    #[test]
    fn hidden_objects_are_counted_and_explained() {
        let mut hidden = HiddenObjects::default();
        hidden.add(Hidden::DotComponent, "./x");
        hidden.add(Hidden::EmptyComponent, "a//b");
        hidden.add(Hidden::DotComponent, "../y");
        assert_eq!(hidden.count(), 3);
        assert_eq!(
            hidden.to_string(),
            "1 with an empty path component (such as `a//b`), 2 with `.` or `..` as a path component (such as `./x`)"
        );
    }
}
