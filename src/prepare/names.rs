//! Names of lines, `custom_id`, each of which may come once in all of a dataset.
//!
//! A name is kept as a hash of 64 bits, under a key that no file knows: among 20 million names two are taken for one with a
//! probability of 1e-5. Places of the first names are kept beside them, for messages.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use super::entry::Place;

/// Names whose places are kept.
const MOST_PLACES: usize = 100_000;

/// Names of all lines so far.
#[derive(Default)]
pub(super) struct Names {
    key: RandomState,
    first: HashMap<u64, Place>,
    others: HashSet<u64>,
}

/// The earlier line of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Earlier(Option<Place>);

impl fmt::Display for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(place) => place.fmt(f),
            None => f.write_str("an earlier line"),
        }
    }
}

impl Names {
    /// Takes in the name of the line at `place`, unless an earlier line has it.
    pub fn insert(&mut self, name: &str, place: &Place) -> Option<Earlier> {
        // The names themselves would be as long as the batch; a file cannot aim at a hash whose key it does not know.
        let hash = self.key.hash_one(name);
        if let Some(earlier) = self.first.get(&hash) {
            return Some(Earlier(Some(earlier.clone())));
        }
        if self.first.len() < MOST_PLACES {
            self.first.insert(hash, place.clone());
            return None;
        }
        (!self.others.insert(hash)).then_some(Earlier(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Position;
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_early_lines_are_named() {
        let mut names = Names::default();
        let place = |line| Place { file: None, position: Position::Line(line) };
        let count = MOST_PLACES + 1000;
        for line in 1..=count {
            assert_eq!(names.insert(&format!("name {line}"), &place(line)), None);
        }
        let again = |names: &mut Names, line: usize| names.insert(&format!("name {line}"), &place(count + line));
        assert_eq!(again(&mut names, 7).map(|earlier| earlier.to_string()).as_deref(), Some("line 7"));
        assert_eq!(again(&mut names, count).map(|earlier| earlier.to_string()).as_deref(), Some("an earlier line"));
        assert_eq!(names.first.len() + names.others.len(), count);
    }
}
