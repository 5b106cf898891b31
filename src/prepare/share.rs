//! The part of a dataset that one of several replicas runs. Requests keep their numbers, so that a request is the same
//! whichever replica runs it.

use std::collections::HashSet;

use flashjob_config::Share;
use flashjob_event::RequestId;

use super::{Entry, Error};
use crate::backend::Request;

/// The requests of `share`, and the entries that go with them: what was skipped goes with the request after it, and with the
/// last one at the end. All shares together are everything, once.
pub(super) fn take(
    share: Share,
    mut requests: Vec<Request>,
    mut entries: Vec<Entry>,
) -> Result<(Vec<Request>, Vec<Entry>), Error> {
    let total = entries.iter().filter(|entry| matches!(entry, Entry::Asked { .. })).count();
    let range = share.of(total);
    if range.is_empty() {
        return Err(nothing_left(share, total));
    }
    let mut next = 0;
    entries.retain(|entry| {
        // Entries that were skipped behind the last request go with it, or no replica would report them.
        let place = next.min(total - 1);
        if let Entry::Asked { .. } = entry {
            next += 1;
        }
        range.contains(&place)
    });
    // A line of several answers has several requests, which stay together.
    let kept: HashSet<RequestId> = entries.iter().flat_map(Entry::requests).collect();
    requests.retain(|request| kept.contains(&request.id));
    Ok((requests, entries))
}

/// More replicas than prompts.
pub(super) fn nothing_left(share: Share, total: usize) -> Error {
    Error::Workload(format!(
        "{total} prompts leave nothing to do for replica {} of {}; lower replica-count",
        share.index(),
        share.count()
    ))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use flashjob_config::Sampling;

    use super::*;
    use crate::backend::Seed;
    use crate::prepare::{AnswerForm, Labels, Place, Position, RefusalKind, ReplyFormat};

    fn dataset() -> (Vec<Request>, Vec<Entry>) {
        let (mut requests, mut entries) = (Vec::new(), Vec::new());
        // `.` is run, `x` is skipped.
        for (line, kind) in "x.x..xx..x.x".chars().enumerate() {
            let place = Place { file: None, position: Position::Line(line + 1) };
            if kind == 'x' {
                let (form, kind) = (AnswerForm::default(), RefusalKind::Invalid);
                entries.push(Entry::Skipped {
                    place,
                    request: RequestId(line as u32),
                    form,
                    kind,
                    reason: String::new(),
                });
                continue;
            }
            let id = RequestId(requests.len() as u32);
            let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
            requests.push(Request {
                id,
                prompt: vec![1],
                max_tokens: 1,
                ignore_eos: true,
                sampling,
                options: None,
                choice: 0,
                seed: Seed::Job(0),
                text: None,
            });
            entries.push(Entry::Asked {
                place,
                request: id,
                others: 0..0,
                echo: None,
                prompt_tokens: 1,
                form: AnswerForm::Plain(Labels::default()),
                reply: ReplyFormat::default(),
                answer: None,
            });
        }
        (requests, entries)
    }

    #[test]
    fn shares_hold_every_entry_once_in_order_and_keep_numbers() {
        for count in 1..=6 {
            let (mut ids, mut lines) = (Vec::new(), Vec::new());
            for index in 0..count {
                let share = Share::new(index, NonZeroUsize::new(count).unwrap()).unwrap();
                let (requests, entries) = dataset();
                let (requests, entries) = take(share, requests, entries).unwrap();
                let asked: Vec<u32> = entries
                    .iter()
                    .filter_map(|entry| match entry {
                        Entry::Asked { request, .. } => Some(request.0),
                        Entry::Skipped { .. } => None,
                    })
                    .collect();
                let run: Vec<u32> = requests.iter().map(|request| request.id.0).collect();
                assert_eq!(run, asked, "{index} of {count}");
                ids.extend(run);
                lines.extend(entries.iter().map(|entry| match entry {
                    Entry::Asked { place, .. } | Entry::Skipped { place, .. } => place.position,
                }));
            }
            assert_eq!(ids, (0..6).collect::<Vec<u32>>(), "{count}");
            assert_eq!(lines, (1..=12).map(Position::Line).collect::<Vec<_>>(), "{count}");
        }
    }

    #[test]
    fn a_replica_without_prompts_says_so() {
        let (requests, entries) = dataset();
        let share = Share::new(0, NonZeroUsize::new(7).unwrap()).unwrap();
        let error = take(share, requests, entries).unwrap_err().to_string();
        assert!(error.contains("6 prompts leave nothing to do for replica 0 of 7"), "{error}");
    }
}
