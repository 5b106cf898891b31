//! Permissions of each kind of PAR, and the distinction of a refusal from an expired PAR.

use bytes::Bytes;
use flashjob_bucket::{Bucket, Error, ErrorKind};
use serde_json::json;

use super::{Served, TOKEN, open, shown};

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| {
        shown(&error);
        error.kind()
    })
}

/// Results of listing, of reading an object and a missing one, and of writing.
async fn outcomes(bucket: &Bucket, name: &str) -> [Option<ErrorKind>; 4] {
    [
        kind(bucket.list("").await),
        kind(bucket.head(name).await),
        kind(bucket.head(&format!("{name} missing")).await),
        kind(bucket.put(name, Bytes::from_static(b"1")).await),
    ]
}

#[tokio::test]
async fn every_access_type_has_its_outcomes() {
    use ErrorKind::{ListingNotAllowed, NotFound, OutsidePrefix, ParNoLongerWorks, WritingNotAllowed};
    let served = Served::with(&[("dir/a", b"1"), ("b", b"2")]);
    for (grant, name, expected) in [
        (json!({}), "b", [None, None, Some(NotFound), None]),
        (json!({"listing": false}), "b", [Some(ListingNotAllowed), None, Some(NotFound), None]),
        (json!({"access": "AnyObjectRead"}), "b", [None, None, Some(NotFound), Some(WritingNotAllowed)]),
        (
            json!({"access": "AnyObjectRead", "listing": false}),
            "b",
            [Some(ListingNotAllowed), None, Some(NotFound), Some(WritingNotAllowed)],
        ),
        // Who may only write is answered as if the bucket were not there: no request can tell the two apart.
        (
            json!({"access": "AnyObjectWrite", "listing": false}),
            "b",
            [Some(ParNoLongerWorks), Some(ParNoLongerWorks), Some(ParNoLongerWorks), None],
        ),
        (json!({"prefix": "dir/"}), "dir/a", [Some(OutsidePrefix), None, Some(NotFound), None]),
        (json!({"prefix": "dir/", "listing": false}), "dir/a", [Some(ListingNotAllowed), None, Some(NotFound), None]),
        (
            json!({"prefix": "dir/"}),
            "b",
            [Some(OutsidePrefix), Some(OutsidePrefix), Some(OutsidePrefix), Some(OutsidePrefix)],
        ),
        (
            json!({"object": "b", "access": "ObjectRead"}),
            "b",
            [None, None, Some(OutsidePrefix), Some(WritingNotAllowed)],
        ),
        (json!({"object": "b", "access": "ObjectReadWrite"}), "b", [None, None, Some(OutsidePrefix), None]),
    ] {
        let bucket = open(&served.server.par(grant.clone()));
        assert_eq!(outcomes(&bucket, name).await, expected, "{grant} with {name}");
    }
}

#[tokio::test]
async fn a_par_that_ends_is_told_from_everything_else() {
    let served = Served::with(&[("b", b"2")]);
    let bucket = served.open();
    let object = bucket.head("b").await.unwrap();
    served.server.revoke(served.server.url());
    let gone = Some(ErrorKind::ParNoLongerWorks);
    assert_eq!(outcomes(&bucket, "b").await, [gone; 4]);
    let error = bucket.get(&object, 0..1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParNoLongerWorks);
    let message = shown(&error);
    assert!(message.contains("PAR does not exist") && message.contains("Make a new PAR"), "{message}");
}

#[tokio::test]
async fn another_bucket_behind_a_right_token_is_not_there() {
    let served = Served::with(&[("b", b"2")]);
    let bucket = open(&served.server.url().replace("/b/models/", "/b/others/"));
    assert_eq!(kind(bucket.list("").await), Some(ErrorKind::ParNoLongerWorks));
    assert!(!format!("{bucket:?}").contains(TOKEN), "{bucket:?}");
}
