//! A shard that is not complete: its journal, and where in it each answer lies.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flashjob_config::OutputOrder;
use flashjob_event::AnswerKind;

use super::counts::AnswerCounts;
use super::error::Error;
use super::journal::{Journal, StoredAnswer};

/// Name of the file of a finished shard.
pub(crate) fn file_name(shard: u64) -> String {
    format!("outputs-{shard:05}.jsonl")
}

/// The journal's own name: no reader of `outputs-*.jsonl` finds it.
pub(crate) fn journal_name(shard: u64) -> String {
    format!("outputs-{shard:05}.journal")
}

/// The number of the shard whose journal has the file name `name`.
pub fn shard_of_journal(name: &str) -> Option<u64> {
    name.strip_prefix("outputs-")?.strip_suffix(".journal")?.parse().ok()
}

/// A shard that is not complete.
#[derive(Debug)]
pub(crate) struct OpenShard {
    first_entry: u64,
    journal: Journal,
    /// By entry, from the shard's first one.
    places: Vec<Option<StoredAnswer>>,
    counts: AnswerCounts,
}

impl OpenShard {
    /// Opens the journal of `shard`, with what is in it already.
    pub(crate) fn open(directory: &Path, shard: u64, entries_per_shard: u64) -> Result<Self, Error> {
        let path = directory.join(journal_name(shard));
        let first_entry = shard * entries_per_shard;
        let mut places = vec![None; entries_per_shard as usize];
        let mut counts = AnswerCounts::default();
        let journal = Journal::open(&path, |record| {
            let place = record.entry.checked_sub(first_entry).and_then(|index| places.get_mut(index as usize));
            // The first of two answers counts: it may have been read already.
            if let Some(place @ None) = place {
                counts += record.counts();
                *place = Some(record.place);
            }
        });
        let journal = journal.map_err(Error::io(&path, "opened"))?;
        Ok(Self { first_entry, journal, places, counts })
    }

    pub(crate) fn has(&self, entry: u64) -> bool {
        self.places[(entry - self.first_entry) as usize].is_some()
    }

    pub(crate) fn counts(&self) -> AnswerCounts {
        self.counts
    }

    /// Appends the answer of `entry`.
    pub(crate) fn append(&mut self, entry: u64, kind: AnswerKind, tokens: [u64; 2], answer: &str) -> Result<(), Error> {
        if self.has(entry) {
            return Err(Error::Twice(entry));
        }
        let place = self.journal.append(entry, kind, tokens, answer);
        let place = place.map_err(Error::io(self.journal.path(), "written"))?;
        self.places[(entry - self.first_entry) as usize] = Some(place);
        self.counts += AnswerCounts::one(kind, tokens[0], tokens[1]);
        Ok(())
    }

    /// Path of its journal.
    pub(crate) fn path(&self) -> &Path {
        self.journal.path()
    }

    pub(crate) fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    pub(crate) fn is_open(&self) -> bool {
        self.journal.is_open()
    }

    /// Writes all answers to the file `to`, in `order`, whole or not at all; gives its size and checksum.
    pub(crate) fn write(&mut self, to: &Path, order: OutputOrder) -> Result<(u64, u32), Error> {
        let mut places: Vec<StoredAnswer> = self.places.iter().copied().flatten().collect();
        // By entry they are in the order of the input already.
        if order == OutputOrder::Any {
            places.sort_unstable_by_key(StoredAnswer::offset);
        }
        let partial = to.with_extension("partial");
        let journal = &mut self.journal;
        let write = || {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
            let written = journal.copy(places.into_iter(), &mut file)?;
            file.flush()?;
            file.get_ref().sync_all()?;
            std::fs::rename(&partial, to)?;
            Ok(written)
        };
        write().map_err(Error::io(to, "written"))
    }

    /// Removes the journal, once its answers are elsewhere.
    pub(crate) fn remove(self) -> Result<(), Error> {
        std::fs::remove_file(self.journal.path()).map_err(Error::io(self.journal.path(), "removed"))
    }
}
