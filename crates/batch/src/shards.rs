//! All shards of a batch that one job answers.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use flashjob_config::OutputOrder;
use flashjob_event::AnswerKind;
use serde::{Deserialize, Serialize};

use super::counts::AnswerCounts;
use super::error::Error;
use super::identity::Identity;
use super::journal::{self, Record};
use super::manifest::{FinishedShard, Manifest};
use super::remote;
use super::shard::{OpenShard, file_name, shard_of_journal};

/// Journals that are open at once; a shard waits for its slowest answer, while later ones fill up.
const MOST_OPEN: usize = 32;

/// Division of a batch into shards, and of shards among replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Entries of a shard; the last one may have fewer.
    pub entries_per_shard: NonZeroU64,
    /// Order of answers in a shard.
    pub order: OutputOrder,
    /// Number of this replica: it answers each `replicas`-th shard from this one on.
    pub replica: u64,
    /// Number of replicas.
    pub replicas: NonZeroU64,
}

impl Layout {
    /// Name of the manifest: replicas may share a directory.
    pub fn manifest_name(&self) -> String {
        match self.replicas.get() {
            1 => super::MANIFEST.to_owned(),
            replicas => format!("manifest-{:05}-of-{replicas:05}.jsonl", self.replica),
        }
    }

    pub(crate) fn difference(&self, earlier: &Self) -> Option<String> {
        let Self { entries_per_shard, order, replica, replicas } = *earlier;
        if entries_per_shard != self.entries_per_shard {
            let now = self.entries_per_shard;
            return Some(format!("its shards had {entries_per_shard} entries and would have {now} now"));
        }
        if order != self.order {
            return Some("the order of its answers was another one".to_owned());
        }
        let share = (replica, replicas) != (self.replica, self.replicas);
        share.then(|| format!("it was answered by replica {replica} of {replicas}"))
    }

    /// Entries of this replica, where the batch has so many.
    pub fn share_of(&self, entries: u64) -> u64 {
        let (size, replicas) = (self.entries_per_shard.get(), self.replicas.get());
        // Whole shards come to all replicas in turn, and the last, shorter one to whoever is next.
        let (whole, rest) = (entries / size, entries % size);
        let mine = whole / replicas + u64::from(self.replica < whole % replicas);
        mine * size + if self.has(whole) { rest } else { 0 }
    }

    fn shard_of(&self, entry: u64) -> u64 {
        entry / self.entries_per_shard
    }

    fn has(&self, shard: u64) -> bool {
        shard % self.replicas == self.replica
    }
}

/// An answer, as it goes into a shard.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Number of the entry.
    pub entry: u64,
    /// Completion, or kind of error.
    pub kind: AnswerKind,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
    /// One line of JSON, without its end.
    pub line: &'a str,
}

/// Shards of a batch that this job answers.
#[derive(Debug)]
pub struct Shards {
    directory: PathBuf,
    layout: Layout,
    manifest: Manifest,
    finished: BTreeMap<u64, FinishedShard>,
    open: BTreeMap<u64, OpenShard>,
    /// Entries of the batch, once all of them have been seen.
    entries: Option<u64>,
    counts: AnswerCounts,
}

impl Shards {
    /// Opens the shards of a batch in `directory`, which is made where there is none, with all answers that an earlier job has left there. A finished shard whose file
    /// is not there, as `is_stored` says of its name and size, is answered again.
    ///
    /// # Errors
    /// Answers of another batch, and as the file system says.
    pub fn open(
        directory: &Path,
        layout: Layout,
        identity: &Identity,
        is_stored: &dyn Fn(&str, u64) -> bool,
    ) -> Result<Self, Error> {
        // A link would lead out of the results.
        if !directory.symlink_metadata().is_ok_and(|there| there.is_dir()) {
            std::fs::create_dir(directory).map_err(Error::io(directory, "made"))?;
        }
        let (manifest, earlier) = Manifest::open(directory, layout, identity)?;
        let stored = earlier.shards.into_iter().filter(|record| is_stored(&file_name(record.shard), record.bytes));
        // Of a shard that was answered twice the later record counts.
        let finished: BTreeMap<u64, FinishedShard> = stored.map(|record| (record.shard, record)).collect();
        let mut shards = Self {
            directory: directory.to_owned(),
            layout,
            manifest,
            finished,
            open: BTreeMap::new(),
            entries: earlier.entries,
            counts: AnswerCounts::default(),
        };
        shards.open_journals()?;
        shards.count();
        Ok(shards)
    }

    /// Division of entries into shards.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Adds the answers of all shards up.
    fn count(&mut self) {
        let of_finished = self.finished.values().map(|record| record.counts);
        let all = of_finished.chain(self.open.values().map(OpenShard::counts));
        self.counts = all.fold(AnswerCounts::default(), |mut sum, counts| {
            sum += counts;
            sum
        });
    }

    /// Takes over `shard`, which another place has finished and whose content is in the file `fetched` of the same directory. False
    /// where that is not its content, or the shard is not lacking: the file is removed then.
    ///
    /// # Errors
    /// As the file system says.
    pub fn adopt(&mut self, shard: &FinishedShard, fetched: &Path) -> Result<bool, Error> {
        let to = self.directory.join(shard.file_name());
        if !(self.lacks(shard.shard) && remote::is_content_of(fetched, shard).map_err(Error::io(fetched, "read"))?) {
            std::fs::remove_file(fetched).map_err(Error::io(fetched, "removed"))?;
            return Ok(false);
        }
        std::fs::rename(fetched, &to).map_err(Error::io(&to, "written"))?;
        self.manifest.add(*shard)?;
        self.finished.insert(shard.shard, *shard);
        // All that the journal has is in the finished shard as well.
        if let Some(open) = self.open.remove(&shard.shard) {
            open.remove()?;
        }
        self.count();
        Ok(true)
    }

    /// Takes over the answers of `shard` that another place had collected, from its journal in the file `fetched`, as far as they are
    /// lacking here; gives their number.
    ///
    /// # Errors
    /// As the file system says.
    pub fn adopt_journal(&mut self, shard: u64, fetched: &Path) -> Result<u64, Error> {
        let (mut adopted, mut failure) = (0, None);
        let file = File::open(fetched).map_err(Error::io(fetched, "opened"))?;
        let read = journal::read(file, |Record { entry, kind, tokens, .. }, line| {
            if self.layout.shard_of(entry) != shard || !self.needs(entry) {
                return true;
            }
            let [input_tokens, output_tokens] = tokens;
            let kept = self.answer(&Answer { entry, kind, input_tokens, output_tokens, line });
            adopted += u64::from(kept.is_ok());
            failure = kept.err();
            failure.is_none()
        });
        read.map_err(Error::io(fetched, "read"))?;
        failure.map_or(Ok(adopted), Err)
    }

    /// Opens the journals that an earlier job has left.
    fn open_journals(&mut self) -> Result<(), Error> {
        for file in std::fs::read_dir(&self.directory).map_err(Error::io(&self.directory, "read"))? {
            let file = file.map_err(Error::io(&self.directory, "read"))?;
            let shard = file.file_name().to_str().and_then(shard_of_journal).filter(|&shard| self.layout.has(shard));
            let Some(shard) = shard else { continue };
            if self.finished.contains_key(&shard) {
                // The job ended between the manifest and this.
                std::fs::remove_file(file.path()).map_err(Error::io(&file.path(), "removed"))?;
                continue;
            }
            let mut open = OpenShard::open(&self.directory, shard, self.layout.entries_per_shard.get())?;
            open.journal().close();
            self.open.insert(shard, open);
        }
        Ok(())
    }

    /// Returns whether `entry` is this replica's, and has no answer yet.
    pub fn needs(&self, entry: u64) -> bool {
        let shard = self.layout.shard_of(entry);
        self.layout.has(shard)
            && !self.finished.contains_key(&shard)
            && !self.open.get(&shard).is_some_and(|open| open.has(entry))
    }

    /// Keeps an answer. Gives the shard that it completes.
    ///
    /// # Errors
    /// As the file system says: the answer is not kept then. [`Error::Twice`] for an entry that is not needed.
    pub fn answer(&mut self, answer: &Answer<'_>) -> Result<Option<FinishedShard>, Error> {
        let &Answer { entry, kind, input_tokens, output_tokens, line } = answer;
        if !self.needs(entry) {
            return Err(Error::Twice(entry));
        }
        let shard = self.layout.shard_of(entry);
        self.make_room(shard);
        let open = match self.open.entry(shard) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(OpenShard::open(&self.directory, shard, self.layout.entries_per_shard.get())?)
            }
        };
        open.append(entry, kind, [input_tokens, output_tokens], line)?;
        self.counts += AnswerCounts::one(kind, input_tokens, output_tokens);
        self.finish_if_complete(shard)
    }

    /// Says that the batch has `entries`, all of which have been seen. Gives the shards that are complete by that.
    ///
    /// # Errors
    /// As the file system says.
    pub fn end(&mut self, entries: u64) -> Result<Vec<FinishedShard>, Error> {
        // Not once more in each attempt.
        if self.entries != Some(entries) {
            self.manifest.end(entries)?;
        }
        self.entries = Some(entries);
        // Also those that were complete when an earlier job was killed.
        let open: Vec<u64> = self.open.keys().copied().collect();
        open.into_iter().filter_map(|shard| self.finish_if_complete(shard).transpose()).collect()
    }

    /// Returns whether every entry of this replica has an answer.
    pub fn is_complete(&self) -> bool {
        let Some(entries) = self.entries else { return false };
        let shards = entries.div_ceil(self.layout.entries_per_shard.get());
        let mine = (self.layout.replica..shards).step_by(self.layout.replicas.get() as usize);
        self.open.is_empty() && mine.into_iter().all(|shard| self.finished.contains_key(&shard))
    }

    /// Entries of this replica; `None` while not all entries of the batch have been seen.
    pub fn entries(&self) -> Option<u64> {
        self.entries.map(|entries| self.layout.share_of(entries))
    }

    /// Shards that have answers and wait for others.
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// All answers that there are, those of earlier jobs included.
    pub fn counts(&self) -> AnswerCounts {
        self.counts
    }

    /// Finished shards, in order.
    pub fn finished(&self) -> impl Iterator<Item = FinishedShard> {
        self.finished.values().copied()
    }

    /// Entries of the batch, once all of them have been seen.
    pub fn all_entries(&self) -> Option<u64> {
        self.entries
    }

    /// Journals of shards that are not complete, those that have an answer.
    pub fn journals(&self) -> impl Iterator<Item = &Path> {
        self.open.values().filter(|open| open.counts().answers() > 0).map(OpenShard::path)
    }

    /// Returns whether `shard` is this replica's and not complete.
    pub fn lacks(&self, shard: u64) -> bool {
        self.layout.has(shard) && !self.finished.contains_key(&shard)
    }

    /// Entries of `shard`, as far as is known.
    fn entries_of(&self, shard: u64) -> u64 {
        let (size, first) = (self.layout.entries_per_shard.get(), shard * self.layout.entries_per_shard.get());
        self.entries.map_or(size, |entries| entries.saturating_sub(first).min(size))
    }

    fn finish_if_complete(&mut self, shard: u64) -> Result<Option<FinishedShard>, Error> {
        let entries = self.entries_of(shard);
        let Some(open) = self.open.get_mut(&shard).filter(|open| open.counts().answers() == entries) else {
            return Ok(None);
        };
        // Under the final name at once: whoever looks for shards finds whole ones alone.
        let (bytes, crc32) = open.write(&self.directory.join(file_name(shard)), self.layout.order)?;
        let record = FinishedShard { shard, bytes, crc32, counts: open.counts() };
        // The journal goes last: whatever comes before it may be done again.
        self.manifest.add(record)?;
        self.finished.insert(shard, record);
        if let Some(open) = self.open.remove(&shard) {
            open.remove()?;
        }
        Ok(Some(record))
    }

    /// Closes journals where another one would be too many.
    fn make_room(&mut self, for_shard: u64) {
        if self.open.get(&for_shard).is_some_and(OpenShard::is_open) {
            return;
        }
        // All of them: which one is needed next is not known, and opening again is cheap.
        if self.open.values().filter(|open| open.is_open()).count() >= MOST_OPEN {
            self.open.values_mut().for_each(|open| open.journal().close());
        }
    }
}
