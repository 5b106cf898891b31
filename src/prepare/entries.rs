//! A dataset read from first to last: each entry becomes a request, or is refused by its place in the file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;

use flashjob_config::{Dataset, OnBadInput, ReplyLength, Sampling, Workload, shortened};
use flashjob_event::RequestId;
use flashjob_model::{Ask, TextService};

use super::entry::{Entry, Place};
use super::matcher::Matcher;
use super::prompt_encoder::PromptEncoder;
use super::question::{AnswerForm, DatasetRequest, Refusal, RequestSettings};
use super::{Error, arithmetic, jsonl, share, sharegpt};
use crate::backend::{Request, Seed};

/// Entries that are encoded together at most, and bytes of their texts after which no more are read before that.
const TOGETHER: usize = 4096;
const TOGETHER_BYTES: usize = 1 << 20;

/// Reads the dataset at `path`, or the one that is made here: requests, and every entry in its order.
///
/// # Errors
/// A file that cannot be read; one that holds nothing to run, or less than `num-prompts`; and unless bad input is to be
/// skipped, the first entry that cannot be run.
pub(super) fn read(
    workload: &Workload,
    sampling: Sampling,
    path: Option<&Path>,
    texts: &TextService,
    max_model_len: usize,
) -> Result<(Vec<Request>, Vec<Entry>), Error> {
    let name = path.map_or_else(|| "dataset=arithmetic".to_owned(), |path| path.display().to_string());
    let unreadable = |error: &dyn fmt::Display| Error::Workload(format!("the dataset {name} cannot be read: {error}"));
    let mut reading = Reading::new(workload, texts, max_model_len, name.clone())?;
    let outcome = match path {
        None => {
            arithmetic::read(workload.seed, sampling, &mut |place, asked| reading.take(place, asked));
            Ok(())
        }
        Some(path) => {
            let file = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?);
            match workload.dataset {
                Dataset::ShareGpt { reply_length, .. } => read_sharegpt(&mut reading, file, sampling, reply_length),
                _ => {
                    let take = &mut |place, asked| reading.take(place, asked);
                    jsonl::read(file, sampling, take).map_err(|error| unreadable(&error))
                }
            }
        }
    };
    // What stands before the place where a file cannot be read further is judged first.
    reading.encode_waiting();
    match reading.failed {
        None => outcome.and_then(|()| reading.end()),
        Some(error) => Err(error),
    }
}

fn read_sharegpt(
    reading: &mut Reading<'_>,
    file: BufReader<File>,
    sampling: Sampling,
    reply_length: ReplyLength,
) -> Result<(), Error> {
    let at = reading.name.clone();
    let take = &mut |place, asked| reading.take(place, asked);
    sharegpt::read(file, sampling, reply_length, take).map_err(|error| {
        let what = if error.is_io() { "cannot be read" } else { "is not a JSON array of conversations" };
        Error::Workload(format!("the dataset {at} {what}: {error}"))
    })
}

/// State of reading a dataset.
struct Reading<'a> {
    workload: &'a Workload,
    /// The dataset as messages call it.
    name: String,
    max_model_len: usize,
    texts: &'a TextService,
    encoder: PromptEncoder,
    waiting: Waiting,
    requests: Vec<Request>,
    entries: Vec<Entry>,
    names: HashMap<String, Place>,
    skipped: usize,
    failed: Option<Error>,
}

/// Skipped entries at most: each is kept until its answer is written.
const MOST_SKIPPED: usize = 1_000_000;

/// Longest reason that is remembered, in bytes: some name all that a template says.
const LONGEST_REASON_BYTES: usize = 500;

/// Entries that are encoded together.
#[derive(Default)]
struct Waiting {
    entries: Vec<(Place, Result<Encodable, Refusal>)>,
    /// Texts to encode: of each encodable entry its prompt, and its reply where it has one.
    asks: Vec<Ask>,
    bytes: usize,
}

/// An entry without the texts that become tokens.
struct Encodable {
    settings: RequestSettings,
    has_reply: bool,
    form: AnswerForm,
    answer: Option<Matcher>,
}

impl<'a> Reading<'a> {
    fn new(workload: &'a Workload, texts: &'a TextService, max_model_len: usize, name: String) -> Result<Self, Error> {
        Ok(Self {
            workload,
            name,
            max_model_len,
            texts,
            encoder: PromptEncoder::new(texts.facts(), workload.apply_chat_template, max_model_len)?,
            waiting: Waiting::default(),
            requests: Vec::new(),
            entries: Vec::new(),
            names: HashMap::new(),
            skipped: 0,
            failed: None,
        })
    }

    /// Takes one entry in. Ends the reading once `num-prompts` are read, skipped ones included, or when one is bad and
    /// that is to be fatal.
    fn take(&mut self, place: Place, asked: Result<DatasetRequest, Refusal>) -> ControlFlow<()> {
        let encodable = asked.and_then(|asked| self.encodable(place, asked));
        // Entries before a fatal one are still encoded: the first mistake of the file is the one that is reported.
        let is_fatal = encodable.is_err() && self.workload.on_bad_input == OnBadInput::Fail;
        self.waiting.entries.push((place, encodable));
        let read = self.entries.len() + self.waiting.entries.len();
        let is_last = is_fatal || self.workload.num_prompts.map(usize::from) == Some(read);
        if is_last || self.waiting.entries.len() >= TOGETHER || self.waiting.bytes >= TOGETHER_BYTES {
            self.encode_waiting();
        }
        if is_last || self.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Puts the texts of an entry to those that become tokens.
    fn encodable(&mut self, place: Place, asked: DatasetRequest) -> Result<Encodable, Refusal> {
        let DatasetRequest { question, settings, reply, form, answer } = asked;
        let refuse = |reason: String| Refusal { custom_id: form.custom_id().map(str::to_owned), reason };
        // Answers are matched by `custom_id`: two lines with the same one could not be told apart.
        if let Some(custom_id) = form.custom_id()
            && let Some(earlier) = self.names.insert(custom_id.to_owned(), place)
        {
            return Err(refuse(format!("its `custom_id` is that of {earlier} too; give each line one of its own")));
        }
        let prompt = self.encoder.ask(question).map_err(refuse)?;
        // Its length counts only where the line itself does not say how much is to be generated.
        let reply = reply.filter(|_| settings.max_tokens.is_none()).map(|reply| self.encoder.ask_of_reply(reply));
        let reply = reply.transpose().map_err(refuse)?;
        let has_reply = reply.is_some();
        for ask in [prompt].into_iter().chain(reply) {
            self.waiting.bytes += ask.bytes();
            self.waiting.asks.push(ask);
        }
        Ok(Encodable { settings, has_reply, form, answer })
    }

    /// Encodes the entries that wait, and takes them one by one until one is bad and that is to be fatal.
    fn encode_waiting(&mut self) {
        let Waiting { entries, asks, .. } = std::mem::take(&mut self.waiting);
        if self.failed.is_some() {
            return;
        }
        // Where the first mistake ends the job, the tokens of later texts are of no use.
        let stop_at_first = self.workload.on_bad_input == OnBadInput::Fail;
        let mut encoded = match self.texts.encode(asks, stop_at_first) {
            Ok(encoded) => encoded.into_iter(),
            Err(error) => {
                self.failed = Some(Error::Encoding(error));
                return;
            }
        };
        let missing = || Err("its tokens are missing".to_owned());
        for (place, encodable) in entries {
            let request = encodable.and_then(|Encodable { settings, has_reply, form, answer }| {
                let prompt = encoded.next().unwrap_or_else(missing);
                let reply = has_reply.then(|| encoded.next().unwrap_or_else(missing));
                let custom_id = form.custom_id().map(str::to_owned);
                let request = prompt.and_then(|prompt| self.request(prompt, reply, settings));
                Ok((request.map_err(|reason| Refusal { custom_id, reason })?, form, answer))
            });
            match request {
                Ok((request, form, answer)) => {
                    let (id, prompt_tokens) = (request.id, request.prompt.len());
                    self.requests.push(request);
                    self.entries.push(Entry::Asked { place, request: id, prompt_tokens, form, answer });
                }
                Err(Refusal { custom_id, reason }) if !stop_at_first => {
                    // Skipped entries are kept for their lines in `outputs.jsonl`. A large file that is no dataset at all
                    // would fill the memory with them.
                    self.skipped += 1;
                    if self.skipped > MOST_SKIPPED {
                        let at = &self.name;
                        self.failed = Some(Error::Workload(format!(
                            "{at}: more than {MOST_SKIPPED} lines or entries up to {place} are no prompts, the last because \
                             {reason}; is it a dataset?"
                        )));
                        return;
                    }
                    self.entries.push(Entry::Skipped {
                        place,
                        custom_id,
                        reason: shortened(reason, LONGEST_REASON_BYTES),
                    });
                }
                Err(Refusal { reason, .. }) => {
                    let (at, reason) = (&self.name, shortened(reason, LONGEST_REASON_BYTES));
                    self.failed = Some(Error::Workload(format!(
                        "{at}, {place}: {reason} (on-bad-input=skip reports such input and goes on)"
                    )));
                    return;
                }
            }
        }
    }

    /// The request of an entry, or a sentence about its absence.
    fn request(
        &self,
        prompt: Vec<u32>,
        reply: Option<Result<Vec<u32>, String>>,
        settings: RequestSettings,
    ) -> Result<Request, String> {
        if prompt.is_empty() {
            return Err("its prompt has no tokens".to_owned());
        }
        // The line goes before the recorded reply, and that before the job. An empty reply still asks for one token: without
        // any, a request has no latency.
        let max_tokens = match (settings.max_tokens, reply) {
            (Some(tokens), _) => tokens.get(),
            (None, Some(reply)) => reply?.len().max(1),
            (None, None) => self.workload.output_len.get(),
        };
        if prompt.len().saturating_add(max_tokens) > self.max_model_len {
            return Err(format!(
                "its prompt has {} tokens, and with {max_tokens} output tokens it exceeds max-model-len={}; shorten it or \
                 ask for less",
                prompt.len(),
                self.max_model_len
            ));
        }
        Ok(Request {
            // Skipped entries take no number: ids are indices into the requests.
            id: RequestId(self.requests.len() as u32),
            prompt,
            max_tokens,
            ignore_eos: settings.ignore_eos.unwrap_or(self.workload.ignore_eos),
            sampling: settings.sampling,
            seed: settings.seed.map_or(Seed::Job(self.workload.seed), Seed::Request),
        })
    }

    fn end(self) -> Result<(Vec<Request>, Vec<Entry>), Error> {
        let at = &self.name;
        if self.requests.is_empty() {
            let first = self.entries.iter().find_map(|entry| match entry {
                Entry::Skipped { place, reason, .. } => {
                    Some(format!("; the first that was skipped is {place}: {reason}"))
                }
                Entry::Asked { .. } => None,
            });
            return Err(Error::Workload(format!("the dataset {at} holds no prompt{}", first.unwrap_or_default())));
        }
        let has_answer = |entry: &Entry| matches!(entry, Entry::Asked { answer: Some(_), .. });
        if let Some(least) = self.workload.least_accuracy
            && !self.entries.iter().any(has_answer)
        {
            return Err(Error::Workload(format!(
                "least-accuracy is {least}, but no line of {at} has an \"answer\"; add correct answers, or leave it out"
            )));
        }
        match self.workload.num_prompts {
            // Fewer prompts than asked for would be another workload under the same name.
            Some(limit) if self.entries.len() < limit.get() => Err(Error::Workload(format!(
                "num-prompts={limit} is above the {} prompts of {at}; lower it, or leave it out to run all",
                self.entries.len()
            ))),
            _ => share::take(self.workload.share, self.requests, self.entries),
        }
    }
}
