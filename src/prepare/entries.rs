//! A dataset read from first to last: each entry becomes a request, or is refused by its place in the file.
//!
//! What has been prepared is handed on and not kept, so that a dataset may be longer than memory.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use flashjob_config::{BackendKind, Dataset, OnBadInput, Sampling, Workload, shortened};
use flashjob_dataset::Content;
use flashjob_event::RequestId;
use flashjob_model::{Ask, TextService};

use super::entry::{Entry, Place, Position};
use super::matcher::Matcher;
use super::names::Names;
use super::prompt_encoder::{Asked, PromptEncoder};
use super::question::{AnswerForm, DatasetRequest, Question, Reason, Refusal, RequestSettings};
use super::reply_format::{self, ReplyFormat, ToolUse};
use super::text_options::SharedOptions;
use super::{Error, arithmetic, jsonl, sharegpt};
use crate::backend::{Request, Seed, TextOptions, unsupported_option};

/// Entries that are encoded together at most, and bytes of their texts after which no more are read before that.
const TOGETHER: usize = 4096;
const TOGETHER_BYTES: usize = 1 << 20;

/// An entry of a dataset with its request.
#[derive(Clone, Debug)]
pub struct PreparedEntry {
    /// The line, row or element.
    pub entry: Entry,
    /// Its request, unless it was refused.
    pub request: Option<Request>,
}

impl PreparedEntry {
    /// The entry, and a request for each of its answers, side by side: their prompt is found while it is in the cache.
    pub fn expanded(self) -> (Entry, Vec<Request>) {
        let Self { entry, request } = self;
        let Some(request) = request else { return (entry, Vec::new()) };
        let further = (1..).zip(entry.requests().skip(1)).map(|(choice, id)| Request { id, choice, ..request.clone() });
        let further: Vec<Request> = further.collect();
        let requests = std::iter::once(request).chain(further).collect();
        (entry, requests)
    }
}

/// Takes what has been prepared; ends the reading where no more is wanted.
pub(super) type TakePrepared<'a> = dyn FnMut(PreparedEntry) -> ControlFlow<()> + 'a;

/// Everything that reading takes.
pub(super) struct ToRead<'a> {
    pub workload: &'a Workload,
    pub sampling: Sampling,
    /// Engine that the requests are for.
    pub backend: BackendKind,
    /// Path of the dataset; `None` is the one that is made here.
    pub path: Option<&'a Path>,
    pub texts: &'a TextService,
    pub max_model_len: usize,
    /// Tells the entries, by number, that are not to be run.
    pub is_done: &'a (dyn Fn(RequestId) -> bool + Send + Sync),
}

/// Numbers of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EntryCounts {
    /// All of them, those included that are done.
    pub all: usize,
    /// Entries that became requests.
    pub asked: usize,
    /// Entries that were refused.
    pub skipped: usize,
    /// Requests with a correct answer.
    pub with_answer: usize,
    /// Tokens of the longest request, its output included.
    pub longest: usize,
}

/// Reads `dataset` and hands every entry to `take` in order, but for those that are done.
///
/// # Errors
/// A file that cannot be read; one that holds nothing to run, or less than `num-prompts`; and unless bad input is to be
/// skipped, the first entry that cannot be run. Entries before it have been handed over.
pub(super) fn read(dataset: &ToRead<'_>, take: &mut TakePrepared<'_>) -> Result<EntryCounts, Error> {
    let &ToRead { workload, sampling, path, .. } = dataset;
    let mut reading = Reading::new(dataset, take)?;
    let outcome = match path {
        None => {
            arithmetic::read(workload.seed, sampling, &mut |position, asked| reading.take(position, asked));
            Ok(())
        }
        Some(path) => read_files(&mut reading, path, sampling),
    };
    // What stands before the place where a file cannot be read further is judged first.
    reading.encode_waiting();
    match reading.failed {
        None => outcome.and_then(|()| reading.end()),
        Some(error) => Err(error),
    }
}

/// Reads all files that `path` stands for, one after the other.
fn read_files(reading: &mut Reading<'_, '_>, path: &Path, sampling: Sampling) -> Result<(), Error> {
    let from_dataset = |error: flashjob_dataset::Error| Error::Workload(format!("the dataset: {error}"));
    let files = flashjob_dataset::find(path).map_err(from_dataset)?;
    let is_one = files.len() == 1;
    let workload = reading.workload;
    for file in files {
        reading.file = (!is_one).then(|| Arc::from(file.name.as_str()));
        let at = file.path.display();
        let unreadable =
            |error: &dyn fmt::Display| Error::Workload(format!("the dataset {at} cannot be read: {error}"));
        let content = flashjob_dataset::open(&file).map_err(from_dataset)?;
        let take = &mut |position, asked| reading.take(position, asked);
        let flow = match (content, &workload.dataset) {
            (Content::Lines(mut lines), &Dataset::ShareGpt { reply_length, .. }) => {
                sharegpt::read(&mut *lines, sampling, reply_length, take).map_err(|error| {
                    let what = if error.is_io() { "cannot be read" } else { "is not a JSON array of conversations" };
                    Error::Workload(format!("the dataset {at} {what}: {error}"))
                })?;
                ControlFlow::Continue(())
            }
            (Content::Lines(mut lines), _) => {
                jsonl::read_lines(&mut *lines, &workload.columns, sampling, take).map_err(|error| unreadable(&error))?
            }
            (Content::Rows(_), Dataset::ShareGpt { .. }) => {
                return Err(unreadable(&"it is a table and not a JSON array of conversations; set dataset=jsonl"));
            }
            (Content::Rows(rows), _) => {
                jsonl::read_rows(rows, &workload.columns, sampling, take).map_err(from_dataset)?
            }
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// State of reading a dataset.
struct Reading<'a, 't> {
    workload: &'a Workload,
    backend: BackendKind,
    is_done: &'a (dyn Fn(RequestId) -> bool + Send + Sync),
    /// The dataset as messages call it.
    name: String,
    /// The file that is read, where there are several.
    file: Option<Arc<str>>,
    max_model_len: usize,
    texts: &'a TextService,
    encoder: PromptEncoder,
    options: SharedOptions,
    waiting: Waiting,
    take_prepared: &'a mut TakePrepared<'t>,
    counts: EntryCounts,
    names: Names,
    first_skipped: Option<String>,
    /// Whoever takes entries wants no more.
    is_enough: bool,
    /// The next number of a request for a further answer to an entry.
    next_other: u32,
    failed: Option<Error>,
}

/// Entries without a request at most that a file may begin with.
const MOST_SKIPPED: usize = 1_000_000;

/// Numbers of requests for further answers to an entry begin here. They are given to all entries, also those that are done, so that a
/// request has the same number in each attempt.
const FIRST_OTHER: u32 = 1 << 31;

/// Longest reason that is remembered, in bytes: some name all that a template says.
const LONGEST_REASON_BYTES: usize = 500;

/// Entries that are encoded together.
#[derive(Default)]
struct Waiting {
    entries: Vec<(Place, RequestId, Result<Encodable, Refusal>)>,
    /// Texts to encode: of each encodable entry its prompt, and its reply where it has one.
    asks: Vec<Ask>,
    bytes: usize,
}

/// An entry without the texts that become tokens.
struct Encodable {
    /// Tokens of a prompt that needs no encoding.
    tokens: Option<Vec<u32>>,
    settings: RequestSettings,
    text: Option<Arc<TextOptions>>,
    tools: Option<ToolUse>,
    is_chat: bool,
    has_reply: bool,
    form: AnswerForm,
    answer: Option<Matcher>,
    /// Numbers of its requests beside the first.
    others: Range<u32>,
    echo: Option<Arc<str>>,
}

impl<'a, 't> Reading<'a, 't> {
    fn new(dataset: &ToRead<'a>, take_prepared: &'a mut TakePrepared<'t>) -> Result<Self, Error> {
        let &ToRead { workload, path, texts, max_model_len, is_done, backend, .. } = dataset;
        Ok(Self {
            workload,
            backend,
            is_done,
            name: path.map_or_else(|| "dataset=arithmetic".to_owned(), |path| path.display().to_string()),
            file: None,
            max_model_len,
            texts,
            encoder: PromptEncoder::new(texts.facts(), workload.apply_chat_template, max_model_len)?,
            options: SharedOptions::default(),
            waiting: Waiting::default(),
            take_prepared,
            counts: EntryCounts::default(),
            names: Names::default(),
            first_skipped: None,
            is_enough: false,
            next_other: FIRST_OTHER,
            failed: None,
        })
    }

    /// Takes one entry in. Ends the reading once `num-prompts` are read, skipped ones included, or when one is bad and
    /// that is to be fatal.
    fn take(&mut self, position: Position, asked: Result<DatasetRequest, Refusal>) -> ControlFlow<()> {
        let place = Place { file: self.file.clone(), position };
        // By its number, and not by those before it that could be run: so a request is the same in every attempt and replica.
        let Ok(number) = u32::try_from(self.counts.all).map(RequestId) else {
            self.failed = Some(Error::Workload(format!("{} has more than {} entries; divide it", self.name, u32::MAX)));
            return ControlFlow::Break(());
        };
        self.counts.all += 1;
        // A refused line asks for nothing, in this attempt as in all others.
        let others = asked.as_ref().map_or(0, |asked| asked.settings.choices.get() - 1);
        let end = self.next_other.checked_add(others);
        let Some(end) = end.filter(|&end| end == FIRST_OTHER || number.0 < FIRST_OTHER) else {
            let reason = format!("{} asks for more than {FIRST_OTHER} answers; divide it", self.name);
            self.failed = Some(Error::Workload(reason));
            return ControlFlow::Break(());
        };
        let others = std::mem::replace(&mut self.next_other, end)..end;
        let mut is_last = self.workload.num_prompts.map(usize::from) == Some(self.counts.all);
        if !(self.is_done)(number) {
            let encodable = asked.and_then(|asked| self.encodable(&place, asked, others));
            // Entries before a fatal one are still encoded: the first mistake of the file is the one that is reported.
            is_last |= encodable.is_err() && self.workload.on_bad_input == OnBadInput::Fail;
            self.waiting.entries.push((place, number, encodable));
        }
        if is_last || self.waiting.entries.len() >= TOGETHER || self.waiting.bytes >= TOGETHER_BYTES {
            self.encode_waiting();
        }
        if is_last || self.is_enough || self.failed.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Puts the texts of an entry to those that become tokens.
    fn encodable(&mut self, place: &Place, asked: DatasetRequest, others: Range<u32>) -> Result<Encodable, Refusal> {
        let DatasetRequest { question, mut settings, reply, form, answer } = asked;
        let refuse = |reason: Reason| Refusal { form: form.clone(), reason };
        // Answers are matched by `custom_id`: two lines with the same one could not be told apart.
        if let Some(custom_id) = form.custom_id()
            && let Some(earlier) = self.names.insert(custom_id, place)
        {
            let sentence = format!("its `custom_id` is that of {earlier} too; give each line one of its own");
            return Err(refuse(sentence.into()));
        }
        let text =
            settings.text.take().map(|text| self.options.shared(text, self.texts)).transpose().map_err(refuse)?;
        let (tools, is_chat) = (settings.tools.take(), matches!(question, Question::Messages(_)));
        let tools = reply_format::understood(tools, self.texts.facts()).map_err(refuse)?;
        // Kept only where it is to be repeated: prompts are texts here for the last time.
        let mut echo = match &question {
            Question::Prompt(text) if settings.echo => Some(Arc::from(text.as_str())),
            _ => None,
        };
        let (prompt, tokens) = match self.encoder.ask(question).map_err(refuse)? {
            Asked::Texts(ask) => (Some(ask), None),
            Asked::Tokens(tokens) => (None, Some(tokens)),
        };
        self.waiting.bytes += tokens.as_ref().map_or(0, |tokens| size_of_val(&tokens[..]));
        // Its length counts only where the line itself does not say how much is to be generated.
        let reply = reply.filter(|_| settings.max_tokens.is_none()).map(|reply| self.encoder.ask_of_reply(reply));
        let reply = reply.transpose().map_err(refuse)?;
        let has_reply = reply.is_some();
        for ask in prompt.into_iter().chain(reply) {
            self.waiting.bytes += ask.bytes();
            self.waiting.asks.push(ask);
        }
        if let Some(tokens) = tokens.as_ref().filter(|_| settings.echo) {
            let text = self.texts.decode(&[tokens.as_slice()]).pop().unwrap_or_else(|| Ok(String::new()));
            echo = Some(text.map_err(|error| refuse(error.to_string().into()))?.into());
        }
        Ok(Encodable { tokens, settings, text, tools, is_chat, has_reply, form, answer, others, echo })
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
        for (place, number, encodable) in entries {
            let request = encodable.and_then(|encodable| {
                let Encodable { tokens, settings, text, tools, is_chat, has_reply, form, answer, others, echo } =
                    encodable;
                let prompt = tokens.map_or_else(|| encoded.next().unwrap_or_else(missing), Ok);
                let reply = has_reply.then(|| encoded.next().unwrap_or_else(missing));
                let request = prompt.map_err(Reason::from);
                match request.and_then(|prompt| self.request(number, prompt, reply, settings, text)) {
                    Ok(request) => {
                        let reply = ReplyFormat::of(&request, tools, is_chat, self.texts);
                        Ok((request, form, reply, answer, others, echo))
                    }
                    Err(reason) => Err(Refusal { form, reason }),
                }
            });
            match request {
                Ok((request, form, reply, answer, others, echo)) => {
                    let prompt_tokens = request.prompt.len();
                    self.counts.asked += 1;
                    self.counts.with_answer += usize::from(answer.is_some());
                    self.counts.longest = self.counts.longest.max(prompt_tokens + request.max_tokens);
                    let entry =
                        Entry::Asked { place, request: number, others, echo, prompt_tokens, form, reply, answer };
                    self.hand_over(PreparedEntry { entry, request: Some(request) });
                }
                Err(Refusal { form, reason: Reason { kind, sentence: reason } }) if !stop_at_first => {
                    self.counts.skipped += 1;
                    let reason = shortened(reason, LONGEST_REASON_BYTES);
                    // A large file that is no dataset at all would be answered line by line.
                    if self.counts.skipped > MOST_SKIPPED && self.counts.asked == 0 {
                        let at = &self.name;
                        self.failed = Some(Error::Workload(format!(
                            "{at}: more than {MOST_SKIPPED} lines or entries up to {place} are no prompts, the last because \
                             {reason}; is it a dataset?"
                        )));
                        return;
                    }
                    self.first_skipped
                        .get_or_insert_with(|| format!("; the first that was skipped is {place}: {reason}"));
                    let entry = Entry::Skipped { place, request: number, form, kind, reason };
                    self.hand_over(PreparedEntry { entry, request: None });
                }
                Err(Refusal { reason, .. }) => {
                    let (at, reason) = (&self.name, shortened(reason.sentence, LONGEST_REASON_BYTES));
                    self.failed = Some(Error::Workload(format!(
                        "{at}, {place}: {reason} (on-bad-input=skip reports such input and goes on)"
                    )));
                    return;
                }
            }
            // What was encoded with it is wanted by nobody.
            if self.is_enough {
                return;
            }
        }
    }

    fn hand_over(&mut self, prepared: PreparedEntry) {
        self.is_enough |= (self.take_prepared)(prepared).is_break();
    }

    /// The request of an entry, or a sentence about its absence.
    fn request(
        &self,
        id: RequestId,
        prompt: Vec<u32>,
        reply: Option<Result<Vec<u32>, String>>,
        settings: RequestSettings,
        text: Option<Arc<TextOptions>>,
    ) -> Result<Request, Reason> {
        if prompt.is_empty() {
            return Err("its prompt has no tokens".to_owned().into());
        }
        // The line goes before the recorded reply, and that before the job. An empty reply still asks for one token: without
        // any, a request has no latency.
        let max_tokens = match (settings.max_tokens, reply) {
            (Some(tokens), _) => tokens.get(),
            (None, Some(reply)) => reply?.len().max(1),
            (None, None) => self.workload.output_len.get(),
        };
        check_length(prompt.len(), max_tokens, self.max_model_len)?;
        // A line may name any number; one beyond the embedding would end all requests, and not its own.
        self.check_options(&prompt, &settings, max_tokens)?;
        let ends_late = settings.options.as_ref().is_some_and(|options| options.min_tokens > 0);
        if ends_late && text.as_ref().is_some_and(|text| text.guided.is_some()) {
            // Where its text is complete nothing but its end is left.
            let sentence =
                "`min_tokens` and a grammar contradict each other where the text is complete; leave one of them out";
            return Err(sentence.to_owned().into());
        }
        Ok(Request {
            id,
            prompt,
            max_tokens,
            ignore_eos: settings.ignore_eos.unwrap_or(self.workload.ignore_eos),
            sampling: settings.sampling,
            options: settings.options,
            choice: 0,
            seed: settings.seed.map_or(Seed::Job(self.workload.seed), Seed::Request),
            text,
        })
    }

    /// Refuses tokens that the model does not have, and an answer that may not end before it has to.
    fn check_options(&self, prompt: &[u32], settings: &RequestSettings, max_tokens: usize) -> Result<(), Reason> {
        let end = self.texts.facts().vocab_size;
        let check = |name: &str, unknown: Option<u32>| match unknown {
            Some(id) => Err(format!("`{name}` has token {id}, and the model's ids end below {end}").into()),
            None => Ok::<(), Reason>(()),
        };
        let is_unknown = |id: &u32| *id as usize >= end;
        check("prompt", prompt.iter().copied().find(is_unknown))?;
        let Some(options) = &settings.options else { return Ok(()) };
        check("stop_token_ids", options.stop_token_ids.iter().copied().find(is_unknown))?;
        check("logit_bias", options.logit_bias.iter().map(|&(token, _)| token).find(is_unknown))?;
        if options.min_tokens > max_tokens {
            let least = options.min_tokens;
            let sentence =
                format!("`min_tokens` must be at most the {max_tokens} tokens that it asks for, not {least}");
            return Err(sentence.into());
        }
        match unsupported_option(self.backend, options) {
            Some((name, reason)) => {
                Err(Reason::unsupported(format!("`{name}` is not supported: {reason}; leave it out")))
            }
            None => Ok(()),
        }
    }

    fn end(self) -> Result<EntryCounts, Error> {
        let (at, counts) = (&self.name, self.counts);
        // What earlier attempts have answered has not been looked at.
        let is_all = counts.asked + counts.skipped == counts.all;
        if counts.asked == 0 && is_all && !self.is_enough {
            let first = self.first_skipped.unwrap_or_default();
            return Err(Error::Workload(format!("the dataset {at} holds no prompt{first}")));
        }
        if let Some(least) = self.workload.least_accuracy
            && is_all
            && counts.with_answer == 0
        {
            return Err(Error::Workload(format!(
                "least-accuracy is {least}, but no line of {at} has an \"answer\"; add correct answers, or leave it out"
            )));
        }
        match self.workload.num_prompts {
            // Fewer prompts than asked for would be another workload under the same name.
            Some(limit) if counts.all < limit.get() && !self.is_enough => Err(Error::Workload(format!(
                "num-prompts={limit} is above the {} prompts of {at}; lower it, or leave it out to run all",
                counts.all
            ))),
            _ => Ok(counts),
        }
    }
}

/// Refuses a prompt of `prompt_tokens` that is to be continued by `max_tokens`, where both are more than is served.
pub(super) fn check_length(prompt_tokens: usize, max_tokens: usize, max_model_len: usize) -> Result<(), Reason> {
    if prompt_tokens.saturating_add(max_tokens) <= max_model_len {
        return Ok(());
    }
    Err(Reason::too_long(format!(
        "its prompt has {prompt_tokens} tokens, and with {max_tokens} output tokens it exceeds max-model-len={max_model_len}; shorten \
         it or ask for less"
    )))
}
