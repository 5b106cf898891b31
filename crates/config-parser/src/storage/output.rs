//! Destination of results at the end of the job.

use std::path::PathBuf;

use flashjob_config::{OutputStorage, Par, ParTarget};

use super::entry::entries;
use super::input::{parse_par, read_par};
use crate::error::ConfigError;
use crate::keys::Raw;
use crate::parsing;
use crate::resolver::Resolver;
use crate::slot::Given;

/// Fields of one entry: ours, or the platform's own form.
const FIELDS: [&str; 5] = ["par", "prefix", "bucket_name", "mount_location", "volume_size_in_gbs"];

/// A prefix and a file's name must fit the 1024 bytes of an object's name.
const LONGEST_PREFIX_BYTES: usize = 512;

/// Destination of results.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// A bucket that we write to.
    pub storage: Option<OutputStorage>,
    /// A directory that the platform uploads by itself, and where results therefore belong.
    pub collected: Option<PathBuf>,
}

/// Reads the output. `None`: an error was noted.
pub(crate) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Output> {
    match &raw.output_object_storage.given {
        Some(list) => resolve_list(resolver, raw, list),
        None => resolve_plain(resolver, raw),
    }
}

fn resolve_list(resolver: &mut Resolver, raw: &Raw, list: &Given) -> Option<Output> {
    let slot = &raw.output_object_storage;
    if raw.output_par.given.is_some() || raw.output_prefix.given.is_some() {
        let sentence = "output-object-storage and output-par or output-prefix are both given; say it one way only";
        resolver.errors.push(ConfigError::Together(sentence.to_owned()));
        return None;
    }
    if !resolver.check_reference(slot, list) {
        return None;
    }
    let output = parse_list(&list.text)
        .map_err(|clause| resolver.errors.push(ConfigError::hidden(&slot.key(), &list.origin, clause)))
        .ok()?;
    let shown = match &output {
        Output { storage: Some(storage), .. } => format!("{}{}", storage.par, storage.prefix),
        Output { collected: Some(path), .. } => format!("{}, collected by the platform", path.display()),
        Output { .. } => "none".to_owned(),
    };
    resolver.note(slot, shown, list.origin.clone());
    Some(output)
}

/// The short form.
fn resolve_plain(resolver: &mut Resolver, raw: &Raw) -> Option<Output> {
    let par = read_par(resolver, &raw.output_par);
    let prefix = resolver.read_open(&raw.output_prefix, parse_prefix, Clone::clone);
    let (par, prefix) = (par?, prefix?);
    match (par, &raw.output_par.given) {
        (Some(par), Some(given)) => writable(par, prefix.unwrap_or_default())
            .map_err(|clause| resolver.errors.push(ConfigError::hidden(&raw.output_par.key(), &given.origin, clause)))
            .ok(),
        _ if prefix.is_some() => {
            let sentence =
                "output-prefix is given, but there is no output-par for it to stand in; give both or neither";
            resolver.errors.push(ConfigError::Together(sentence.to_owned()));
            None
        }
        _ => Some(Output::default()),
    }
}

fn parse_list(text: &str) -> Result<Output, String> {
    let entries = entries(text, &FIELDS)?;
    let [entry] = entries.as_slice() else {
        return match entries.len() {
            0 => Ok(Output::default()),
            several => Err(format!("it has {several} entries, but results go to one place")),
        };
    };
    // With bucket_name the platform uploads a directory by itself, and results are written there.
    match (entry.text("par")?, entry.text("bucket_name")?, entry.text("mount_location")?) {
        (Some(_), Some(_), _) => Err("an entry has either par or bucket_name".to_owned()),
        (Some(par), None, _) => writable(parse_par(par)?, parse_prefix(entry.text("prefix")?.unwrap_or_default())?),
        (None, Some(_), Some(location)) => {
            let path = parsing::path(location)?;
            if !path.is_absolute() {
                return Err("mount_location must be an absolute path".to_owned());
            }
            Ok(Output { storage: None, collected: Some(path) })
        }
        (None, ..) => Err("an entry needs par, or bucket_name and mount_location".to_owned()),
    }
}

/// Only a bucket or prefix takes several results.
fn writable(par: Par, prefix: String) -> Result<Output, String> {
    match par.target() {
        ParTarget::Collection => Ok(Output { storage: Some(OutputStorage { par, prefix }), collected: None }),
        ParTarget::Object(_) => {
            Err("it is the Pre-Authenticated Request of one object; give one of a bucket or prefix".to_owned())
        }
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    if text.len() > LONGEST_PREFIX_BYTES {
        return Err(format!("it must not be longer than {LONGEST_PREFIX_BYTES} bytes"));
    }
    parsing::plain(text)
}
