//! Answers of another place that are taken over.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flashjob_batch::{RemoteManifest, Shards, shard_of_journal};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{answer, identity, layout, line, open, outputs};

const ADVICE: &str = "do something else";

fn read(content: &[u8]) -> Result<RemoteManifest, String> {
    RemoteManifest::read(content, "bucket/outputs/manifest.jsonl", ADVICE, layout(5), &identity())
        .map_err(|error| error.to_string())
}

/// Takes over everything that `from` has and `shards` lack.
fn adopt_all(shards: &mut Shards, from: &Path, to: &Path) {
    let content = fs::read(from.join("manifest.jsonl")).unwrap();
    let fetched = to.join("fetched");
    for shard in read(&content).unwrap().shards().filter(|shard| shards.lacks(shard.shard)).copied().collect::<Vec<_>>()
    {
        fs::copy(from.join(shard.file_name()), &fetched).unwrap();
        assert!(shards.adopt(&shard, &fetched).unwrap());
    }
    for path in fs::read_dir(from).unwrap().map(|file| file.unwrap().path()) {
        let Some(shard) = shard_of_journal(path.file_name().unwrap().to_str().unwrap()) else { continue };
        if shards.lacks(shard) {
            shards.adopt_journal(shard, &path).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever each of two places has, together they have the union, each entry once.
    #[test]
    fn answers_of_two_places_are_united(
        entries in 1u64..40,
        here in prop::collection::btree_set(0u64..40, 0..40),
        there in prop::collection::btree_set(0u64..40, 0..40),
        ended in any::<bool>(),
    ) {
        let (disk, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let within = |answered: &BTreeSet<u64>| answered.iter().copied().filter(|&entry| entry < entries).collect::<BTreeSet<_>>();
        let (here, there) = (within(&here), within(&there));
        for (place, answered) in [(&disk, &here), (&bucket, &there)] {
            let mut shards = open(place.path(), layout(5)).unwrap();
            answered.iter().for_each(|&entry| _ = answer(&mut shards, entry).unwrap());
            if ended {
                shards.end(entries).unwrap();
            }
        }
        let mut shards = open(disk.path(), layout(5)).unwrap();
        adopt_all(&mut shards, bucket.path(), disk.path());
        let both: BTreeSet<u64> = here.union(&there).copied().collect();
        prop_assert_eq!(shards.counts().answers(), both.len() as u64);
        prop_assert_eq!((0..entries).filter(|&entry| !shards.needs(entry)).collect::<BTreeSet<_>>(), both.clone());
        // A kill at this place changes nothing.
        drop(shards);
        let mut shards = open(disk.path(), layout(5)).unwrap();
        prop_assert_eq!(shards.counts().answers(), both.len() as u64);
        (0..entries).filter(|&entry| shards.needs(entry)).collect::<Vec<_>>().into_iter().for_each(|entry| _ = answer(&mut shards, entry).unwrap());
        shards.end(entries).unwrap();
        prop_assert!(shards.is_complete());
        prop_assert_eq!(outputs(disk.path()), (0..entries).map(line).collect::<Vec<_>>());
    }
}

#[test]
fn a_shard_that_is_not_as_its_manifest_says_is_not_taken() {
    let (disk, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut there = open(bucket.path(), layout(5)).unwrap();
    let finished: Vec<_> = (0..5).filter_map(|entry| answer(&mut there, entry).unwrap()).collect();
    let whole = fs::read_to_string(bucket.path().join(finished[0].file_name())).unwrap();
    let mut shards = open(disk.path(), layout(5)).unwrap();
    answer(&mut shards, 2).unwrap();
    let fetched = disk.path().join("fetched");
    for content in [String::new(), whole[1..].to_owned(), whole.replace('x', "y"), format!("{whole}\n")] {
        fs::write(&fetched, content).unwrap();
        assert!(!shards.adopt(&finished[0], &fetched).unwrap());
        assert!(!fetched.exists() && shards.needs(0) && !shards.needs(2));
    }
    fs::write(&fetched, &whole).unwrap();
    assert!(shards.adopt(&finished[0], &fetched).unwrap());
    assert_eq!((shards.counts(), shards.journals().count()), (there.counts(), 0));
    // What is here already comes first.
    fs::write(&fetched, whole.replace('x', "z")).unwrap();
    assert!(!shards.adopt(&finished[0], &fetched).unwrap());
    assert_eq!(fs::read_to_string(disk.path().join("outputs-00000.jsonl")).unwrap(), whole);
}

#[test]
fn a_manifest_is_what_it_was_after_it_was_written_and_read() {
    let place = TempDir::new().unwrap();
    let mut shards = open(place.path(), layout(5)).unwrap();
    let finished: Vec<_> = (0..10).filter_map(|entry| answer(&mut shards, entry).unwrap()).collect();
    let mut manifest = RemoteManifest::new(layout(5), &identity()).unwrap();
    finished.iter().for_each(|shard| manifest.add(*shard));
    manifest.end(10);
    let content = manifest.to_bytes();
    shards.end(10).unwrap();
    assert_eq!(content, fs::read(place.path().join("manifest.jsonl")).unwrap(), "as on the disk");
    let again = read(&content).unwrap();
    assert!(again.has(&finished[0]) && again.entries() == Some(10) && again.to_bytes() == content);
    // Cut off anywhere behind its first line, it has what stands before the cut.
    let first = content.iter().position(|byte| *byte == b'\n').unwrap();
    for end in first + 1..content.len() {
        let cut = read(&content[..end]).unwrap();
        assert_eq!(
            cut.shards().count(),
            content[first + 1..end].iter().filter(|byte| **byte == b'\n').count(),
            "{end}"
        );
    }
    manifest.remove(0);
    assert!(!read(&manifest.to_bytes()).unwrap().has(&finished[0]));
}

#[test]
fn a_manifest_of_another_batch_or_of_none_names_its_place() {
    let mut other = identity();
    other.settings.insert("model".to_owned(), "large".to_owned());
    let content = RemoteManifest::new(layout(5), &other).unwrap().to_bytes();
    assert_eq!(
        read(&content).unwrap_err(),
        "`bucket/outputs` holds the answers of another batch: model was `large` and is `tiny` now; do something else"
    );
    let said = read(b"nonsense\n").unwrap_err();
    assert!(
        said.starts_with("`bucket/outputs/manifest.jsonl` is no manifest of flashjob: its first line is"),
        "{said}"
    );
}
