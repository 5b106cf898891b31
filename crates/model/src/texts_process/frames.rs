//! Messages between the two processes: a length, a kind, and numbers and bytes of known lengths.

use std::io::{self, Read, Write};

use serde_json::Value;

use crate::{Ask, Conversation, TextFacts, TokenBytes};

/// Longest message in bytes.
const LONGEST: u32 = 1 << 30;

/// A message from the job.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// Questions to encode, with a number that comes back with the answer.
    Encode { number: u32, asks: Vec<Ask> },
    /// Conversations to render without encoding: tells a template's fault from a tokenizer's.
    Render { number: u32, asks: Vec<Ask> },
    /// Tokens of several texts to decode.
    Decode(Vec<Vec<u32>>),
    /// The bytes of all tokens.
    TokenBytes,
    /// Tokens to decode each by itself, special ones included.
    Spell(Vec<u32>),
}

impl Order {
    /// Approximate size of the message in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Order::Encode { asks, .. } | Order::Render { asks, .. } => asks.iter().map(Ask::bytes).sum(),
            Order::Decode(texts) => texts.iter().map(|ids| size_of_val(&ids[..])).sum(),
            Order::TokenBytes => 0,
            Order::Spell(tokens) => size_of_val(&tokens[..]),
        }
    }
}

/// A message from the process with the texts.
#[derive(Debug)]
pub(super) enum Answer {
    /// The texts are open.
    Opened(Box<TextFacts>),
    /// The texts cannot be opened.
    Refused(String),
    /// Token IDs, or a sentence, for each question.
    Encoded { number: u32, results: Vec<Result<Vec<u32>, String>> },
    /// For each list of tokens a text, or a sentence.
    Decoded(Vec<Result<String, String>>),
    /// The bytes of all tokens, or a sentence about their absence.
    TokenBytes(Result<TokenBytes, String>),
}

/// Writes `order` in one call.
pub(super) fn write_order(out: &mut impl Write, order: &Order) -> io::Result<()> {
    let mut frame = Frame::default();
    match order {
        Order::Encode { number, asks } | Order::Render { number, asks } => {
            frame.number(if matches!(order, Order::Encode { .. }) { 0 } else { 1 });
            frame.number(*number);
            frame.number(asks.len() as u32);
            for ask in asks {
                match ask {
                    Ask::Text { text, add_special } => {
                        frame.number(u32::from(*add_special));
                        frame.bytes(text.as_bytes());
                    }
                    Ask::Messages(Conversation { messages, tools }) => {
                        frame.number(2);
                        for values in [messages, tools] {
                            frame.number(values.len() as u32);
                            values.iter().for_each(|value| frame.value(value));
                        }
                    }
                }
            }
        }
        Order::Decode(texts) => {
            frame.number(2);
            frame.number(texts.len() as u32);
            texts.iter().for_each(|ids| frame.numbers(ids));
        }
        Order::TokenBytes => frame.number(3),
        Order::Spell(tokens) => {
            frame.number(4);
            frame.numbers(tokens);
        }
    }
    frame.write(out)
}

/// The next order; `None` once the job closes its end.
pub(super) fn read_order(input: &mut impl Read) -> io::Result<Option<Order>> {
    let Some(bytes) = read(input)? else { return Ok(None) };
    let mut rest = Rest(&bytes);
    let order = match rest.number()? {
        kind @ (0 | 1) => {
            let (number, count) = (rest.number()?, rest.number()?);
            let mut asks = Vec::new();
            for _ in 0..count {
                asks.push(match rest.number()? {
                    2 => {
                        let mut values = || {
                            let count = rest.number()?;
                            (0..count).map(|_| rest.value()).collect::<io::Result<Vec<Value>>>()
                        };
                        Ask::Messages(Conversation { messages: values()?, tools: values()? })
                    }
                    add_special => Ask::Text { text: rest.text()?, add_special: add_special == 1 },
                });
            }
            if kind == 0 { Order::Encode { number, asks } } else { Order::Render { number, asks } }
        }
        2 => {
            let count = rest.number()?;
            Order::Decode((0..count).map(|_| rest.numbers()).collect::<io::Result<_>>()?)
        }
        3 => Order::TokenBytes,
        4 => Order::Spell(rest.numbers()?),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(Some(order))
}

/// Writes `answer` in one call.
pub(super) fn write_answer(out: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let mut frame = Frame::default();
    match answer {
        Answer::Opened(facts) => {
            frame.number(0);
            frame.bytes(&serde_json::to_vec(facts)?);
        }
        Answer::Refused(sentence) => {
            frame.number(1);
            frame.bytes(sentence.as_bytes());
        }
        Answer::Encoded { number, results } => {
            frame.number(2);
            frame.number(*number);
            frame.number(results.len() as u32);
            for result in results {
                match result {
                    Ok(ids) => {
                        frame.number(0);
                        frame.numbers(ids);
                    }
                    Err(sentence) => {
                        frame.number(1);
                        frame.bytes(sentence.as_bytes());
                    }
                }
            }
        }
        Answer::Decoded(results) => {
            frame.number(3);
            frame.number(results.len() as u32);
            for result in results {
                frame.number(u32::from(result.is_err()));
                frame.bytes(result.as_ref().unwrap_or_else(|sentence| sentence).as_bytes());
            }
        }
        Answer::TokenBytes(Ok(table)) => {
            frame.number(4);
            frame.number(table.len() as u32);
            (0..table.len() as u32).for_each(|token| frame.bytes(table.spelled(token)));
            frame.numbers(&table.special());
        }
        Answer::TokenBytes(Err(sentence)) => {
            frame.number(5);
            frame.bytes(sentence.as_bytes());
        }
    }
    frame.write(out)
}

/// The next answer; `None` once the process is gone.
pub(super) fn read_answer(input: &mut impl Read) -> io::Result<Option<Answer>> {
    let Some(bytes) = read(input)? else { return Ok(None) };
    let mut rest = Rest(&bytes);
    Ok(Some(match rest.number()? {
        0 => Answer::Opened(Box::new(serde_json::from_slice(rest.bytes()?)?)),
        1 => Answer::Refused(rest.text()?),
        2 => {
            let (number, count) = (rest.number()?, rest.number()?);
            let mut results = Vec::new();
            for _ in 0..count {
                results.push(if rest.number()? == 0 { Ok(rest.numbers()?) } else { Err(rest.text()?) });
            }
            Answer::Encoded { number, results }
        }
        3 => {
            let count = rest.number()?;
            let result = |_| Ok(if rest.number()? == 0 { Ok(rest.text()?) } else { Err(rest.text()?) });
            Answer::Decoded((0..count).map(result).collect::<io::Result<_>>()?)
        }
        4 => {
            let count = rest.number()?;
            let tokens = (0..count).map(|_| rest.bytes()).collect::<io::Result<Vec<&[u8]>>>()?;
            Answer::TokenBytes(Ok(TokenBytes::new(tokens, rest.numbers()?)))
        }
        5 => Answer::TokenBytes(Err(rest.text()?)),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }))
}

/// A message under construction, after space for its length.
struct Frame(Vec<u8>);

impl Default for Frame {
    fn default() -> Self {
        // Room for the length, which is known only at the end: a frame is then one write.
        Self(vec![0; size_of::<u32>()])
    }
}

impl Frame {
    fn number(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn numbers(&mut self, numbers: &[u32]) {
        self.number(numbers.len() as u32);
        numbers.iter().for_each(|&number| self.number(number));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    /// Writes a JSON value in binary. As text, a number that is parsed may differ in its last digit from the one that
    /// was written.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.number(0),
            Value::Bool(truth) => self.number(1 + u32::from(*truth)),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                // Integers stay integers: a template prints 1 and 1.0 differently.
                (Some(number), ..) => self.long(3, number as u64),
                (_, Some(number), _) => self.long(4, number),
                (.., number) => self.long(5, number.unwrap_or_default().to_bits()),
            },
            Value::String(text) => {
                self.number(6);
                self.bytes(text.as_bytes());
            }
            Value::Array(items) => {
                self.number(7);
                self.number(items.len() as u32);
                items.iter().for_each(|item| self.value(item));
            }
            Value::Object(fields) => {
                self.number(8);
                self.number(fields.len() as u32);
                for (name, value) in fields {
                    self.bytes(name.as_bytes());
                    self.value(value);
                }
            }
        }
    }

    fn long(&mut self, kind: u32, number: u64) {
        self.number(kind);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        let length = self.0.len() - size_of::<u32>();
        if length > LONGEST as usize {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0[..size_of::<u32>()].copy_from_slice(&(length as u32).to_le_bytes());
        out.write_all(&self.0)?;
        out.flush()
    }
}

/// Bytes of the next message.
fn read(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; size_of::<u32>()];
    match input.read_exact(&mut length) {
        // The other side has closed its end, between two frames or by dying; the caller tells them apart by the exit
        // status.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        // The other side may be corrupt: its length must not be allocated unchecked.
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// The unread part of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> io::Result<u32> {
        let bytes = self.take(size_of::<u32>())?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn long(&mut self) -> io::Result<u64> {
        let bytes = self.take(size_of::<u64>())?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn value(&mut self) -> io::Result<Value> {
        Ok(match self.number()? {
            0 => Value::Null,
            truth @ (1 | 2) => Value::Bool(truth == 2),
            3 => Value::from(self.long()? as i64),
            4 => Value::from(self.long()?),
            5 => Value::from(f64::from_bits(self.long()?)),
            6 => Value::String(self.text()?),
            7 => {
                let count = self.number()?;
                Value::Array((0..count).map(|_| self.value()).collect::<io::Result<_>>()?)
            }
            8 => {
                let count = self.number()?;
                Value::Object((0..count).map(|_| Ok((self.text()?, self.value()?))).collect::<io::Result<_>>()?)
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }

    fn numbers(&mut self) -> io::Result<Vec<u32>> {
        // A saturated length fails in `take`: no frame is that long.
        let length = (self.number()? as usize).saturating_mul(size_of::<u32>());
        let bytes = self.take(length)?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect())
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()?;
        self.take(length as usize)
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_is_refused() {
        let asks = vec![
            Ask::Text { text: "ü".to_owned(), add_special: true },
            Ask::Text { text: String::new(), add_special: false },
            Ask::Messages(Conversation {
                messages: vec![
                    serde_json::json!({"role": "user", "content": "x", "n": [0.1, -1, u64::MAX, null, true, {}]}),
                ],
                tools: vec![serde_json::json!({"type": "function"})],
            }),
        ];
        for order in [
            Order::Encode { number: 7, asks: asks.clone() },
            Order::Render { number: u32::MAX, asks },
            Order::Decode(vec![vec![1, u32::MAX], Vec::new()]),
            Order::TokenBytes,
            Order::Spell(vec![7, u32::MAX]),
        ] {
            let mut bytes = Vec::new();
            write_order(&mut bytes, &order).unwrap();
            assert_eq!(read_order(&mut &bytes[..]).unwrap().unwrap(), order);
            for length in 4..bytes.len() {
                assert!(read_order(&mut &bytes[..length]).is_err(), "{order:?} cut to {length}");
                let mut shortened = ((length - 4) as u32).to_le_bytes().to_vec();
                shortened.extend_from_slice(&bytes[4..length]);
                assert!(read_order(&mut &shortened[..]).is_err(), "{order:?} shortened to {length}");
            }
        }
        for told in [Ok(TokenBytes::new([&b"a"[..], b"", b"<s>"], [2])), Err("no".to_owned())] {
            let mut bytes = Vec::new();
            write_answer(&mut bytes, &Answer::TokenBytes(told.clone())).unwrap();
            let read = read_answer(&mut &bytes[..]).unwrap().unwrap();
            assert!(matches!(read, Answer::TokenBytes(read) if read == told));
        }
        assert!(read_order(&mut &b""[..]).unwrap().is_none());
        assert!(read_answer(&mut &[0xff; 8][..]).is_err());
    }
}
