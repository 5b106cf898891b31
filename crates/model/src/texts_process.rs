//! A process for a model's texts: this program, started again with nothing but its pipes.
//!
//! Templates and tokenizers are programs that come with a model. Limits stop those that are merely wrong; a fault that ends a
//! process all the same (stack overflow, out of memory, an endless loop in a library) ends this one. The job notices, restarts
//! it, and repeats unanswered questions one by one: the question at fault gets an error, and the others get their tokens.

mod confinement;
mod frames;
mod process;
mod served;

use std::path::PathBuf;
use std::time::Duration;

use self::frames::{Answer, Order};
use self::process::Process;
use super::{Ask, Error, TextFacts, TokenBytes};

pub(super) use self::served::STACK_BYTES;
pub use self::served::serve_texts;

/// First argument of the process, which marks its purpose.
const MARKER: &str = "__texts";

/// Most questions of one order, and bytes after which it takes no more: small enough that workers finish at nearly the
/// same time.
const MOST_ASKS: usize = 32;
const MOST_BYTES: usize = 64 << 10;

/// Most orders in flight: each worker has one, and finds the next one waiting.
const ORDERS_UNDER_WAY: usize = 2 * served::MOST_WORKERS;

/// Crashes after which the model counts as faulty, whatever it was asked.
const MOST_DEATHS: usize = 32;

/// CPU time that opening may take.
const PATIENCE_OPENING: Duration = Duration::from_secs(120);

/// CPU time that a question may take, besides a second for each [`MOST_BYTES`] of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Token IDs, or a sentence about their absence.
type Answered = Result<Vec<u32>, String>;

/// The process, restarted when it dies.
pub(super) struct Apart {
    program: PathBuf,
    model: PathBuf,
    tokenizer: PathBuf,
    process: Option<Process>,
    deaths: usize,
}

impl Apart {
    /// Starts `program`, which opens the texts.
    pub fn open(program: PathBuf, model: PathBuf, tokenizer: PathBuf) -> Result<(Self, TextFacts), Error> {
        let mut apart = Self { program, model, tokenizer, process: None, deaths: 0 };
        let facts = apart.start()?;
        Ok((apart, facts))
    }

    fn start(&mut self) -> Result<TextFacts, Error> {
        let started = Process::start(&self.program, &self.model, &self.tokenizer);
        let mut process = started.map_err(|error| self.ended(format!("could not be started: {error}")))?;
        match process.answer(PATIENCE_OPENING) {
            Ok(Answer::Opened(facts)) => {
                self.process = Some(process);
                Ok(*facts)
            }
            Ok(Answer::Refused(sentence)) => Err(Error::Texts(sentence)),
            Ok(_) => Err(self.ended("said something without being asked".to_owned())),
            Err(end) => Err(self.ended(end)),
        }
    }

    fn ended(&self, end: String) -> Error {
        Error::TextsEnded { model: self.model.clone(), tokenizer: self.tokenizer.clone(), end }
    }

    /// The process, started if there is none.
    fn running(&mut self) -> Result<&mut Process, Error> {
        if self.process.is_none() {
            // A model whose texts keep ending processes would otherwise make the job restart them without an end.
            if self.deaths > MOST_DEATHS {
                return Err(self.ended(format!("ended {} times", self.deaths)));
            }
            self.start()?;
        }
        match &mut self.process {
            Some(process) => Ok(process),
            None => Err(Error::Texts("the process is not there".to_owned())),
        }
    }

    fn died(&mut self) {
        self.process = None;
        self.deaths += 1;
    }

    /// See [`super::TextService::encode`].
    pub fn encode(&mut self, facts: &TextFacts, asks: Vec<Ask>, stop_at_first: bool) -> Result<Vec<Answered>, Error> {
        let orders = orders(asks);
        let mut answers: Vec<Option<Vec<Answered>>> = vec![None; orders.len()];
        // A question that the process died of has no answer here: all of its order are asked again one by one, so that
        // only the one at fault gets an error.
        self.encode_together(&orders, &mut answers)?;
        let (mut results, mut failed) = (Vec::new(), false);
        for (order, answer) in orders.into_iter().zip(answers) {
            // `orders` makes no others.
            let Order::Encode { asks, .. } = order else { continue };
            if let Some(answer) = answer.filter(|answer| answer.len() == asks.len()) {
                failed |= answer.iter().any(Result::is_err);
                results.extend(answer);
                continue;
            }
            for ask in asks {
                let result = match failed && stop_at_first {
                    true => Err("it comes behind one that failed".to_owned()),
                    false => self.encode_alone(facts, ask)?,
                };
                failed |= result.is_err();
                results.push(result);
            }
        }
        Ok(results)
    }

    /// Collects the answers to `orders`, until all are there or the process dies.
    fn encode_together(&mut self, orders: &[Order], answers: &mut [Option<Vec<Answered>>]) -> Result<(), Error> {
        let process = self.running()?;
        let (mut told, mut answered) = (0, 0);
        while answered < orders.len() {
            // Several orders are kept in flight, so that no worker waits for the pipe.
            while told < orders.len() && told - answered < ORDERS_UNDER_WAY {
                // A broken pipe is noticed when the answer is read.
                let _ = process.tell(&orders[told]);
                told += 1;
            }
            let bytes = orders[answered..told].iter().map(Order::bytes).sum();
            match process.answer(patience(bytes)) {
                Ok(Answer::Encoded { number, results }) if (number as usize) < orders.len() => {
                    answers[number as usize] = Some(results);
                    answered += 1;
                }
                _ => {
                    self.died();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The answer to a question that the process may have died of.
    fn encode_alone(&mut self, facts: &TextFacts, ask: Ask) -> Result<Answered, Error> {
        // Rendered without encoding first: the error then names the template or the tokenizer, whichever is at fault.
        if let (Ask::Messages(_), Some(path)) = (&ask, &facts.chat_template) {
            match self.ask_alone(&Order::Render { number: 0, asks: vec![ask.clone()] })? {
                Ok(Ok(_)) => {}
                Ok(Err(sentence)) => return Ok(Err(sentence)),
                Err(end) => {
                    return Ok(Err(format!(
                        "the chat template of {} cannot be applied: its process {end}",
                        path.display()
                    )));
                }
            }
        }
        let path = self.tokenizer.display().to_string();
        let answered = self.ask_alone(&Order::Encode { number: 0, asks: vec![ask] })?;
        Ok(answered.unwrap_or_else(|end| Err(format!("tokenizer {path}: cannot encode a text: its process {end}"))))
    }

    /// The answer to the single question of `order`, or the way in which the process ended.
    fn ask_alone(&mut self, order: &Order) -> Result<Result<Answered, String>, Error> {
        let process = self.running()?;
        let _ = process.tell(order);
        let end = match process.answer(patience(order.bytes())) {
            Ok(Answer::Encoded { results, .. }) => match <[Answered; 1]>::try_from(results) {
                Ok([answered]) => return Ok(Ok(answered)),
                Err(_) => "answered another question than it was asked".to_owned(),
            },
            Ok(_) => "answered another question than it was asked".to_owned(),
            Err(end) => end,
        };
        self.died();
        Ok(Err(end))
    }

    /// See [`super::TextService::decode`].
    pub fn decode(&mut self, all: &[&[u32]]) -> Vec<Result<String, Error>> {
        match self.decode_together(all) {
            Ok(texts) => texts,
            Err(error) if all.len() == 1 => vec![Err(error)],
            // The process has died of one of them: each by itself, so that only the one at fault gets an error.
            Err(_) => all.iter().flat_map(|tokens| self.decode(&[tokens])).collect(),
        }
    }

    /// A text or an error for each of `all`, unless the process ends.
    fn decode_together(&mut self, all: &[&[u32]]) -> Result<Vec<Result<String, Error>>, Error> {
        let order = Order::Decode(all.iter().map(|tokens| tokens.to_vec()).collect());
        let tokens = all.iter().map(|tokens| tokens.len()).sum();
        self.decoded(&order, all.len(), tokens)
    }

    /// See [`super::TextService::spell`].
    pub fn spell(&mut self, tokens: &[u32]) -> Result<Vec<String>, Error> {
        self.decoded(&Order::Spell(tokens.to_vec()), tokens.len(), tokens.len())?.into_iter().collect()
    }

    /// As many texts as `count`, the answer to an `order` about `tokens` tokens, unless the process ends.
    fn decoded(&mut self, order: &Order, count: usize, tokens: usize) -> Result<Vec<Result<String, Error>>, Error> {
        let process = self.running()?;
        let _ = process.tell(order);
        let end = match process.answer(patience(order.bytes())) {
            Ok(Answer::Decoded(texts)) if texts.len() == count => {
                return Ok(texts.into_iter().map(|text| text.map_err(Error::Texts)).collect());
            }
            Ok(_) => "answered another question than it was asked".to_owned(),
            Err(end) => end,
        };
        self.died();
        Err(self.ended(format!("could not decode {tokens} tokens: it {end}")))
    }

    /// See [`super::TextService::token_bytes`].
    pub fn token_bytes(&mut self) -> Result<TokenBytes, Error> {
        let process = self.running()?;
        let _ = process.tell(&Order::TokenBytes);
        let end = match process.answer(PATIENCE_OPENING) {
            Ok(Answer::TokenBytes(told)) => return told.map_err(Error::Texts),
            Ok(_) => "answered another question than it was asked".to_owned(),
            Err(end) => end,
        };
        self.died();
        Err(self.ended(format!("could not tell the bytes of its tokens: it {end}")))
    }
}

fn patience(bytes: usize) -> Duration {
    // A second of CPU time more for each full order's worth of text.
    PATIENCE + Duration::from_secs((bytes / MOST_BYTES) as u64)
}

/// Groups `asks` into orders, numbered from 0.
fn orders(asks: Vec<Ask>) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    let (mut bytes, mut count) = (MOST_BYTES, MOST_ASKS);
    for ask in asks {
        match orders.last_mut() {
            Some(Order::Encode { asks, .. }) if bytes < MOST_BYTES && count < MOST_ASKS => {
                bytes += ask.bytes();
                count += 1;
                asks.push(ask);
            }
            _ => {
                // Small questions share an order, and a large one has its own: workers then finish at about the same
                // time.
                (bytes, count) = (ask.bytes(), 1);
                orders.push(Order::Encode { number: orders.len() as u32, asks: vec![ask] });
            }
        }
    }
    orders
}
