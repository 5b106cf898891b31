//! Answers that earlier attempts have left in the output bucket: fetched to the disk before anything is loaded, so that a job goes on
//! wherever it is started again.
//!
//! The disk comes first: only what it lacks is fetched. Shards are taken by the manifest there, and only where size, checksum and number
//! of lines are those that it has; answers of unfinished shards are in their journals.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use flashjob_batch::{FinishedShard, Identity, Layout, RemoteManifest, Shards, shard_of_journal};
use flashjob_bucket::{Bucket, ErrorKind, Object, RetryPolicy};
use flashjob_config::OutputStorage;
use flashjob_event::Events;

use super::super::Exit;
use super::super::exit::Failure;
use crate::report::ANSWERS;

/// Largest manifest: some millions of shards.
const LARGEST_MANIFEST_BYTES: u64 = 512 << 20;

/// Files that are fetched at a time.
const FETCHES: usize = 4;

/// Advice where the bucket has answers of another batch.
const ANOTHER_PREFIX: &str = "name another output-prefix, or run the job with the settings and the input that it had";

/// The folder of answers in the output bucket.
pub struct AnswersBucket {
    bucket: Bucket,
    /// Beginning of the names of its objects, ending in `/`.
    folder: String,
    /// Its place without the PAR's token, for messages.
    place: String,
}

/// Answers in the bucket.
pub enum RemoteAnswers {
    /// This PAR may not list or read them, for the reason that is given.
    Unreadable(flashjob_bucket::Error),
    /// Everything that is there.
    Listed {
        /// The manifest, where an earlier attempt has left one.
        manifest: Option<RemoteManifest>,
        /// Objects by the names of their files.
        objects: BTreeMap<String, Object>,
    },
}

/// Results of fetching.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fetched {
    /// Answers that the disk lacked.
    pub answers: u64,
    /// Finished shards among them.
    pub shards: u64,
    /// Shards of the bucket's manifest whose file there is missing or another one.
    pub damaged: u64,
}

impl AnswersBucket {
    /// The folder of answers in `output`, where an operation without progress is given up after `deadline` and `connections` are used
    /// at most.
    ///
    /// # Errors
    /// There can be no HTTP client on this machine.
    pub fn open(
        output: &OutputStorage,
        deadline: Duration,
        connections: usize,
        events: &Events,
    ) -> Result<Self, flashjob_bucket::Error> {
        let policy = RetryPolicy { deadline, connections, ..RetryPolicy::default() };
        let bucket = Bucket::open(output.par.clone(), policy, events.clone())?;
        let folder = format!("{}{ANSWERS}/", output.prefix);
        let place = format!("{}{folder}", output.par);
        Ok(Self { bucket, folder, place })
    }

    /// Lists the folder and reads its manifest.
    ///
    /// # Errors
    /// A bucket that does not answer: going on without it would begin anew, and write over what is there. The answers of another batch.
    pub async fn look(&self, layout: Layout, identity: &Identity) -> Result<RemoteAnswers, Failure> {
        let listed = match self.bucket.list(&self.folder).await {
            Ok(listed) => listed,
            Err(error) if is_denied(&error) => return Ok(RemoteAnswers::Unreadable(error)),
            Err(error) => return Err(Failure::new(Exit::Storage, error)),
        };
        // Names that do not begin with the folder are not asked for; a store that lists them all the same is not believed.
        let file = |object: Object| Some((object.name.strip_prefix(&self.folder)?.to_owned(), object));
        let objects: BTreeMap<String, Object> = listed.into_iter().filter_map(file).collect();
        let name = layout.manifest_name();
        let Some(object) = objects.get(&name) else { return Ok(RemoteAnswers::Listed { manifest: None, objects }) };
        let place = format!("{}{name}", self.place);
        if object.size_bytes > LARGEST_MANIFEST_BYTES {
            let bytes = object.size_bytes;
            let sentence = format!(
                "`{place}` has {bytes} bytes, and no manifest has more than {LARGEST_MANIFEST_BYTES}; {ANOTHER_PREFIX}"
            );
            return Err(Failure::sentence(Exit::Configuration, sentence));
        }
        // All of it at once: it is read line by line only after its length is known to be within the limit.
        let content = match self.bucket.get(object, 0..object.size_bytes).await {
            Ok(content) => content,
            Err(error) if is_denied(&error) => return Ok(RemoteAnswers::Unreadable(error)),
            Err(error) => return Err(Failure::new(Exit::Storage, error)),
        };
        let manifest = RemoteManifest::read(&content, &place, ANOTHER_PREFIX, layout, identity);
        let manifest = manifest.map_err(|error| Failure::new(Exit::Configuration, error))?;
        Ok(RemoteAnswers::Listed { manifest: Some(manifest), objects })
    }

    /// Fetches everything of `manifest` and `objects` that `shards`, which lie in `directory`, lack. Shards of the manifest that are not
    /// in the bucket as it says are taken out of it.
    ///
    /// # Errors
    /// A bucket that does not answer, and a disk that does not take the files.
    pub async fn fetch(
        &self,
        manifest: &mut RemoteManifest,
        objects: &BTreeMap<String, Object>,
        shards: &mut Shards,
        directory: &Path,
    ) -> Result<Fetched, Failure> {
        let before = shards.counts().answers();
        let mut fetched = Fetched::default();
        let is_there = |shard: &FinishedShard| {
            objects.get(&shard.file_name()).is_some_and(|object| object.size_bytes == shard.bytes)
        };
        let (there, missing): (Vec<FinishedShard>, Vec<FinishedShard>) = manifest.shards().copied().partition(is_there);
        fetched.damaged += missing.len() as u64;
        missing.iter().for_each(|shard| manifest.remove(shard.shard));
        let lacking: Vec<FinishedShard> = there.into_iter().filter(|shard| shards.lacks(shard.shard)).collect();
        let journals = || objects.iter().filter_map(|(name, object)| Some((shard_of_journal(name)?, object)));
        let of_journals = journals().filter(|(shard, _)| shards.lacks(*shard)).map(|(_, object)| object.size_bytes);
        let bytes = lacking.iter().map(|shard| shard.bytes).chain(of_journals);
        self.check_room(bytes.fold(0, u64::saturating_add), directory)?;

        let fetches = lacking.iter().map(|shard| async move {
            let to = directory.join(format!("{}.fetched", shard.file_name()));
            let is_whole = self.fetch_file(&objects[&shard.file_name()], &to).await?;
            Ok::<_, Failure>((shard, is_whole.then_some(to)))
        });
        let mut fetches = stream::iter(fetches).buffered(FETCHES);
        while let Some((shard, file)) = fetches.try_next().await? {
            let adopted = match file {
                Some(file) => tokio::task::block_in_place(|| shards.adopt(shard, &file)).map_err(unkept)?,
                None => false,
            };
            match adopted {
                true => fetched.shards += 1,
                false => {
                    fetched.damaged += 1;
                    manifest.remove(shard.shard);
                }
            }
        }
        for (shard, object) in journals() {
            // The shard may have been finished since, by the bucket's own.
            if !shards.lacks(shard) {
                continue;
            }
            let to = directory.join(format!("outputs-{shard:05}.journal.fetched"));
            if self.fetch_file(object, &to).await? {
                tokio::task::block_in_place(|| shards.adopt_journal(shard, &to)).map_err(unkept)?;
                std::fs::remove_file(&to).map_err(|error| unwritable(&to, &error))?;
            }
        }
        // Without it a job that has nothing left to do would not know it.
        if let Some(entries) = manifest.entries() {
            shards.end(entries).map_err(unkept)?;
        }
        fetched.answers = shards.counts().answers() - before;
        Ok(fetched)
    }

    /// Writes the content of `object` to the file `to`. False: it was removed or replaced since it was listed.
    async fn fetch_file(&self, object: &Object, to: &Path) -> Result<bool, Failure> {
        let mut file = BufWriter::new(File::create(to).map_err(|error| unwritable(to, &error))?);
        let mut written = Ok(());
        let mut sink = |piece: &[u8]| {
            if written.is_ok() {
                written = file.write_all(piece);
            }
        };
        match self.bucket.get_into(object, 0..object.size_bytes, &mut sink).await {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Changed) => {
                std::fs::remove_file(to).map_err(|error| unwritable(to, &error))?;
                return Ok(false);
            }
            Err(error) => return Err(Failure::new(Exit::Storage, error)),
        }
        written.and_then(|()| file.flush()).map_err(|error| unwritable(to, &error))?;
        Ok(true)
    }

    /// Refuses to fetch more than the disk has room for.
    fn check_room(&self, bytes: u64, directory: &Path) -> Result<(), Failure> {
        let room = rustix::fs::statvfs(directory).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        match room {
            Ok(room) if bytes > room => Err(Failure::sentence(
                Exit::Storage,
                format!(
                    "`{}` has {bytes} bytes of answers that `{}` lacks, and {room} bytes are free there; give results-dir more room",
                    self.place,
                    directory.display()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Writes the file at `path` to the object of its name in the folder.
    ///
    /// # Errors
    /// As the bucket says, and a file that cannot be read.
    pub async fn put(&self, path: &Path) -> Result<(), flashjob_bucket::Error> {
        let (name, records) = (path.file_name().unwrap_or_default(), path.parent().unwrap_or(Path::new("")));
        self.bucket.put_file(&format!("{}{}", self.folder, name.display()), path, records).await
    }

    /// Writes the manifest called `name`.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn put_manifest(&self, name: &str, content: Vec<u8>) -> Result<(), flashjob_bucket::Error> {
        self.bucket.put(&format!("{}{name}", self.folder), content.into()).await
    }

    /// Place of the folder, without the PAR's token.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// The bucket works, or may work, and this PAR does not let us read.
fn is_denied(error: &flashjob_bucket::Error) -> bool {
    matches!(error.kind(), ErrorKind::ListingNotAllowed | ErrorKind::ParNoLongerWorks | ErrorKind::OutsidePrefix)
}

fn unkept(error: flashjob_batch::Error) -> Failure {
    Failure::new(Exit::Unexpected, error)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let sentence = format!(
        "`{}` cannot be written with what the bucket has of the batch: {error}; give results-dir more room or rights",
        path.display()
    );
    Failure::sentence(Exit::Unexpected, sentence)
}
