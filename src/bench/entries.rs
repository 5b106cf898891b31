//! A dataset read from first to last: each entry becomes a request, or is refused by its place in the file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;

use super::prompt_encoder::PromptEncoder;
use super::question::{AnswerForm, Asked, Refusal};
use super::{Error, jsonl, share, sharegpt};
use crate::backend::Request;
use crate::config::{Dataset, OnBadInput, ReplyLength, Sampling, Workload};
use crate::event::RequestId;
use crate::model::Texts;

/// Where in its file something stands, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A line.
    Line(usize),
    /// An element of an array.
    Entry(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "line {number}"),
            Place::Entry(number) => write!(f, "entry {number}"),
        }
    }
}

/// Something in a dataset, and what became of it.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It is run.
    Asked {
        /// Where it stands.
        place: Place,
        /// Under this number.
        request: RequestId,
        /// Length of its prompt.
        prompt_tokens: usize,
        /// How its answer is written.
        form: AnswerForm,
    },
    /// It is left out.
    Skipped {
        /// Where it stands.
        place: Place,
        /// Its name, where it is a line of a batch that says so.
        custom_id: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the dataset at `path`: requests, and every entry in the file's order.
///
/// # Errors
/// A file that cannot be read; one that holds nothing to run, or less than `num-prompts`; and unless bad input is to be
/// skipped, the first entry that cannot be run.
pub(super) fn read(
    workload: &Workload,
    sampling: Sampling,
    path: &Path,
    texts: &Texts,
    max_model_len: usize,
) -> Result<(Vec<Request>, Vec<Entry>), Error> {
    let at = path.display();
    let unreadable = |error: &dyn fmt::Display| Error::Workload(format!("the dataset {at} cannot be read: {error}"));
    let mut reading = Reading::new(workload, texts, max_model_len, path)?;
    let file = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?);
    match workload.dataset {
        Dataset::ShareGpt { reply_length, .. } => read_sharegpt(&mut reading, file, sampling, reply_length),
        // No file has random prompts.
        Dataset::Random => Ok(()),
        Dataset::Jsonl(_) => {
            let take = &mut |place, asked| reading.take(place, asked);
            jsonl::read(file, sampling, take).map_err(|error| unreadable(&error))
        }
    }?;
    reading.end()
}

fn read_sharegpt(
    reading: &mut Reading<'_>,
    file: BufReader<File>,
    sampling: Sampling,
    reply_length: ReplyLength,
) -> Result<(), Error> {
    let at = reading.path.display();
    let take = &mut |place, asked| reading.take(place, asked);
    sharegpt::read(file, sampling, reply_length, take).map_err(|error| {
        let what = if error.is_io() { "cannot be read" } else { "is not a JSON array of conversations" };
        Error::Workload(format!("the dataset {at} {what}: {error}"))
    })
}

/// What has been read so far.
struct Reading<'a> {
    workload: &'a Workload,
    path: &'a Path,
    max_model_len: usize,
    encoder: PromptEncoder<'a>,
    requests: Vec<Request>,
    entries: Vec<Entry>,
    names: HashMap<String, Place>,
    skipped: usize,
    failed: Option<Error>,
}

/// What is skipped is remembered until its answer is written.
const MOST_SKIPPED: usize = 1_000_000;

/// Longest reason that is remembered, in bytes: some name all that a template says.
const LONGEST_REASON_BYTES: usize = 500;

fn cut(mut reason: String) -> String {
    if reason.len() > LONGEST_REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(LONGEST_REASON_BYTES));
        reason.push('…');
        reason.shrink_to_fit();
    }
    reason
}

impl<'a> Reading<'a> {
    fn new(workload: &'a Workload, texts: &'a Texts, max_model_len: usize, path: &'a Path) -> Result<Self, Error> {
        Ok(Self {
            workload,
            path,
            max_model_len,
            encoder: PromptEncoder::new(texts, workload.apply_chat_template, max_model_len)?,
            requests: Vec::new(),
            entries: Vec::new(),
            names: HashMap::new(),
            skipped: 0,
            failed: None,
        })
    }

    /// Takes one entry in. Ends the reading once `num-prompts` are read, skipped ones included, or when one is bad and
    /// that is to be fatal.
    fn take(&mut self, place: Place, asked: Result<Asked, Refusal>) -> ControlFlow<()> {
        match asked.and_then(|asked| self.request(place, asked)) {
            Ok((request, form)) => {
                let (id, prompt_tokens) = (request.id, request.prompt.len());
                self.requests.push(request);
                self.entries.push(Entry::Asked { place, request: id, prompt_tokens, form });
            }
            Err(Refusal { custom_id, reason }) if self.workload.on_bad_input == OnBadInput::Skip => {
                self.skipped += 1;
                if self.skipped > MOST_SKIPPED {
                    let at = self.path.display();
                    self.failed = Some(Error::Workload(format!(
                        "{at}: more than {MOST_SKIPPED} lines or entries up to {place} are no prompts, the last because {reason}; is \
                         it a dataset?"
                    )));
                    return ControlFlow::Break(());
                }
                self.entries.push(Entry::Skipped { place, custom_id, reason: cut(reason) });
            }
            Err(Refusal { reason, .. }) => {
                let (at, reason) = (self.path.display(), cut(reason));
                self.failed = Some(Error::Workload(format!(
                    "{at}, {place}: {reason} (on-bad-input=skip reports such input and goes on)"
                )));
                return ControlFlow::Break(());
            }
        }
        let limit = self.workload.num_prompts.map(usize::from);
        if limit == Some(self.entries.len()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn request(&mut self, place: Place, asked: Asked) -> Result<(Request, AnswerForm), Refusal> {
        let Asked { question, wish, reply, form } = asked;
        let custom_id = match &form {
            AnswerForm::Plain(_) => None,
            AnswerForm::Batch { custom_id, .. } => Some(custom_id.clone()),
        };
        let refuse = |reason: String| Refusal { custom_id: custom_id.clone(), reason };
        if let Some(custom_id) = &custom_id
            && let Some(earlier) = self.names.insert(custom_id.clone(), place)
        {
            return Err(refuse(format!("its `custom_id` is that of {earlier} too; give each line one of its own")));
        }
        let prompt = self.encoder.encode(&question).map_err(refuse)?;
        let output_tokens = match (wish.output_tokens, &reply) {
            (Some(tokens), _) => tokens.get(),
            (None, Some(reply)) => self.encoder.reply_tokens(reply).map_err(refuse)?,
            (None, None) => self.workload.output_len.get(),
        };
        if prompt.len().saturating_add(output_tokens) > self.max_model_len {
            return Err(refuse(format!(
                "its prompt has {} tokens, and with {output_tokens} output tokens it exceeds max-model-len={}; shorten it or \
                 ask for less",
                prompt.len(),
                self.max_model_len
            )));
        }
        let request = Request {
            id: RequestId(self.requests.len() as u32),
            prompt,
            output_tokens,
            ignore_eos: wish.ignore_eos.unwrap_or(self.workload.ignore_eos),
            sampling: wish.sampling,
            seed: wish.seed.unwrap_or(self.workload.seed),
        };
        Ok((request, form))
    }

    fn end(self) -> Result<(Vec<Request>, Vec<Entry>), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let at = self.path.display();
        if self.requests.is_empty() {
            let first = self.entries.iter().find_map(|entry| match entry {
                Entry::Skipped { place, reason, .. } => {
                    Some(format!("; the first that was skipped is {place}: {reason}"))
                }
                Entry::Asked { .. } => None,
            });
            return Err(Error::Workload(format!("the dataset {at} holds no prompt{}", first.unwrap_or_default())));
        }
        match self.workload.num_prompts {
            Some(limit) if self.entries.len() < limit.get() => Err(Error::Workload(format!(
                "num-prompts={limit} is above the {} prompts of {at}; lower it, or leave it out to run all",
                self.entries.len()
            ))),
            _ => share::take(self.workload.share, self.requests, self.entries),
        }
    }
}
