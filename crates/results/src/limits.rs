//! Limits of what is read: bytes of files, and elements of lists and maps while they are parsed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::error::{Error, shown};

/// Bytes of a `result.json` at most. It has some 10 kB, and about 12 bytes for each second of the measured region.
pub const LARGEST_RESULT_BYTES: u64 = 16 << 20;

/// Combinations of a sweep at most.
pub const MOST_COMBINATIONS: usize = 10_000;

/// The content of the regular file at `path`, of at most `most` bytes.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    // One byte more than the limit tells a longer file from one of exactly that length.
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| Error::unreadable(path, error))?;
    check(bytes.len(), &shown(path), most)?;
    Ok(bytes)
}

/// Refuses more than `most` bytes.
pub(super) fn check(length: usize, name: &str, most: u64) -> Result<(), Error> {
    match length as u64 > most {
        true => Err(Error::TooLarge { path: name.to_owned(), most, what: "bytes" }),
        false => Ok(()),
    }
}

/// Opens a regular file. Opening a named pipe would wait for a writer.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    let there = path.metadata().map_err(|error| Error::unreadable(path, error))?;
    if !there.is_file() {
        return Err(Error::NotAFile(shown(path)));
    }
    File::open(path).map_err(|error| Error::unreadable(path, error))
}

/// A list of at most `MOST` elements.
pub(super) fn list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Elements<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            // No hint of the parser is trusted with a capacity.
            let mut list = Vec::new();
            while let Some(element) = elements.next_element()? {
                if list.len() == MOST {
                    return Err(A::Error::custom(format!("a list has more than {MOST} elements")));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Elements::<T, MOST>(PhantomData))
}

/// An object of at most `MOST` keys, in the order of the file.
pub(super) fn map<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<(String, T)>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Entries<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Entries<T, MOST> {
        type Value = Vec<(String, T)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object of at most {MOST} keys")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = Vec::new();
            while let Some(entry) = entries.next_entry()? {
                if map.len() == MOST {
                    return Err(A::Error::custom(format!("an object has more than {MOST} keys")));
                }
                map.push(entry);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Entries::<T, MOST>(PhantomData))
}
