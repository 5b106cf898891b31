//! Buckets that become files, and their mount points: `input_object_storage` or its short form in plain keys.

use std::path::{Component, Path, PathBuf};

use flashjob_config::{InputStorage, Origin, Par};
use serde_json::Value;

use super::entry::{Entry, entries, text};
use crate::error::ConfigError;
use crate::keys::Raw;
use crate::parsing;
use crate::quoting::quoted;
use crate::resolver::Resolver;
use crate::slot::{Given, Slot};

/// Fields of one entry. `bucket_name` is the platform's way to mount a bucket itself.
const FIELDS: [&str; 6] = ["par", "bucket_name", "mount_location", "volume_size_in_gbs", "include", "exclude"];

/// Directories that belong to the system: hiding one breaks the container.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

const BYTES_PER_GB: u64 = 1_000_000_000;

/// The largest volume that fits 64 bits with room to spare: an exabyte.
const LARGEST_GB: u64 = 1_000_000_000;

/// Reads all inputs. `None`: an error was noted.
pub(crate) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Vec<InputStorage>> {
    let plain = [&raw.par, &raw.mount_location, &raw.volume_size_in_gbs, &raw.include, &raw.exclude];
    let Some(list) = &raw.input_object_storage.given else {
        return resolve_plain(resolver, raw, plain);
    };
    let list_slot = &raw.input_object_storage;
    if let Some((slot, given)) = plain.iter().find_map(|slot| Some((slot, slot.given.as_ref()?))) {
        let key = slot.key();
        resolver.errors.push(ConfigError::Together(format!(
            "input-object-storage ({}) and {key} ({}) are both given; say it one way only",
            list.origin.of("input-object-storage"),
            given.origin.of(&key),
        )));
        return None;
    }
    if !resolver.check_reference(list_slot, list) {
        return None;
    }
    let mut refused = Vec::new();
    let entries = entries(&list.text, &FIELDS).unwrap_or_else(|clause| {
        refused.push(clause);
        Vec::new()
    });
    let inputs: Vec<InputStorage> = entries.iter().filter_map(|entry| input(entry, &mut refused)).collect();
    // Overlaps only among valid entries: those that were refused are not in the list, and their indices would be wrong.
    if refused.is_empty() {
        refused.extend(overlap(&inputs));
    }
    if !refused.is_empty() {
        let key = list_slot.key();
        resolver.errors.extend(refused.into_iter().map(|clause| ConfigError::hidden(&key, &list.origin, clause)));
        return None;
    }
    note_list(resolver, raw, &inputs, list);
    Some(inputs)
}

/// One entry of the list, or every reason why it is none.
fn input(entry: &Entry, refused: &mut Vec<String>) -> Option<InputStorage> {
    let mut note = |clause: String| refused.push(clause);
    let par = entry.read("par", &mut note, |value| match (value, entry.text("bucket_name")?) {
        (Some(_), Some(_)) => Err("an entry has either par or bucket_name".to_owned()),
        (Some(value), None) => parse_par(text(value)?).map(Some),
        // With a bucket_name the platform mounts the bucket; without either, the files are there already.
        (None, _) => Ok(None),
    });
    // Every field is read before any is missed, so that all mistakes of an entry are reported.
    let location = entry.read("mount_location", &mut note, |value| {
        parse_location(value.map(text).transpose()?.unwrap_or(InputStorage::DEFAULT_LOCATION))
    });
    let volume_bytes = entry.read("volume_size_in_gbs", &mut note, |value| match value {
        None => Ok(None),
        Some(Value::String(text)) => parse_volume(text.trim()).map(Some),
        Some(number) => parse_volume(&number.to_string()).map(Some),
    });
    let include = entry.read("include", &mut note, prefixes);
    let exclude = entry.read("exclude", &mut note, prefixes);
    Some(InputStorage {
        par: par?,
        location: location?,
        volume_bytes: volume_bytes?,
        include: include?,
        exclude: exclude?,
    })
}

fn prefixes(value: Option<&Value>) -> Result<Vec<String>, String> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => parsing::prefixes(text.trim()),
        Some(list) => serde_json::from_value(list.clone()).map_err(|_| "it must be a list of texts".to_owned()),
    }
}

/// The short form: at most one input.
fn resolve_plain(resolver: &mut Resolver, raw: &Raw, plain: [&Slot; 5]) -> Option<Vec<InputStorage>> {
    let par = read_par(resolver, &raw.par);
    let location = resolver.read(&raw.mount_location, parse_location, |path| path.display().to_string());
    let volume = resolver.read_open(&raw.volume_size_in_gbs, parse_volume, |bytes| (bytes / BYTES_PER_GB).to_string());
    let include = resolver.read_open(&raw.include, parsing::prefixes, |list| list.join(","));
    let exclude = resolver.read_open(&raw.exclude, parsing::prefixes, |list| list.join(","));
    let given = |slot: &&&Slot| slot.given.is_some();
    if raw.par.given.is_none()
        && let Some(slot) = [&raw.volume_size_in_gbs, &raw.include, &raw.exclude].iter().find(given)
    {
        let key = slot.key();
        let origin = slot.given.as_ref().map(|given| given.origin.of(&key)).unwrap_or_default();
        resolver.errors.push(ConfigError::Together(format!(
            "{key} ({origin}) belongs to a bucket, but there is no par; give the bucket's Pre-Authenticated Request too"
        )));
        return None;
    }
    let input = InputStorage {
        par: par?,
        location: location?,
        volume_bytes: volume?,
        include: include?.unwrap_or_default(),
        exclude: exclude?.unwrap_or_default(),
    };
    Some(if plain.iter().any(|slot| slot.given.is_some()) { vec![input] } else { Vec::new() })
}

/// A Pre-Authenticated Request in a slot of its own; its text is never shown.
pub(super) fn read_par(resolver: &mut Resolver, slot: &Slot) -> Option<Option<Par>> {
    let Some(given) = &slot.given else {
        resolver.note(slot, "none".to_owned(), Origin::Default);
        return Some(None);
    };
    if !resolver.check_reference(slot, given) {
        return None;
    }
    match parse_par(&given.text) {
        Ok(par) => {
            resolver.note(slot, par.to_string(), given.origin.clone());
            Some(Some(par))
        }
        Err(clause) => {
            resolver.errors.push(ConfigError::hidden(&slot.key(), &given.origin, clause));
            None
        }
    }
}

/// A Pre-Authenticated Request, or why a text is none; the text is not repeated.
pub(super) fn parse_par(text: &str) -> Result<Par, String> {
    if text.is_empty() {
        return Err("it is empty; give the URL of a Pre-Authenticated Request, or leave it out".to_owned());
    }
    if text.contains(['<', '>']) {
        return Err("it is a placeholder; put the URL of your Pre-Authenticated Request there".to_owned());
    }
    Par::parse(text).map_err(|error| format!("it is not a Pre-Authenticated Request: {error}"))
}

/// An absolute directory that may be hidden by a mount.
fn parse_location(text: &str) -> Result<PathBuf, String> {
    let path = parsing::path(text)?;
    if !path.is_absolute() {
        return Err("it must be an absolute path such as /models".to_owned());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("it must not contain `..`".to_owned());
    }
    // Normalised, so that `/models/` and `/models/.` are the same place.
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") || SYSTEM.iter().any(|system| path.starts_with(system)) {
        return Err("it belongs to the system; choose a directory of its own such as /models".to_owned());
    }
    Ok(path)
}

/// Gigabytes, in bytes.
fn parse_volume(text: &str) -> Result<u64, String> {
    Ok(parsing::whole(text.trim(), 1, LARGEST_GB)? * BYTES_PER_GB)
}

/// Fault where one location equals another or lies in it.
fn overlap(inputs: &[InputStorage]) -> Option<String> {
    inputs.iter().enumerate().find_map(|(index, inner)| {
        let (other, outer) = inputs.iter().enumerate().find(|(other, outer)| {
            *other != index
                && inner.location.starts_with(&outer.location)
                // Equal locations are a pair in both directions; one message is enough.
                && (inner.location != outer.location || *other < index)
        })?;
        let place = quoted(&inner.location.display().to_string());
        Some(if inner.location == outer.location {
            format!("entries {other} and {index} have the same mount_location {place}; give each its own")
        } else {
            let around = quoted(&outer.location.display().to_string());
            format!("mount_location {place} of entry {index} lies inside {around} of entry {other}; keep them apart")
        })
    })
}

/// Notes a list as if it had been given in plain keys, numbered where there are several.
fn note_list(resolver: &mut Resolver, raw: &Raw, inputs: &[InputStorage], list: &Given) {
    for (index, input) in inputs.iter().enumerate() {
        let mut note = |slot: &Slot, value: Option<String>| {
            let key = match inputs.len() {
                1 => slot.key(),
                _ => format!("input-object-storage.{index}.{}", slot.key()),
            };
            let value = value.filter(|value| !value.is_empty()).unwrap_or_else(|| "none".to_owned());
            resolver.note_as(slot, key, value, list.origin.clone());
        };
        note(&raw.par, input.par.as_ref().map(Par::to_string));
        note(&raw.mount_location, Some(input.location.display().to_string()));
        note(&raw.volume_size_in_gbs, input.volume_bytes.map(|bytes| (bytes / BYTES_PER_GB).to_string()));
        note(&raw.include, Some(input.include.join(",")));
        note(&raw.exclude, Some(input.exclude.join(",")));
    }
}
