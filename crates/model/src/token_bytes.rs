//! The bytes that each token stands for: what a text's tokens are strung together from.
//!
//! A token may be a part of a character, so that these are bytes and not texts. They are what the decoder of the tokenizer makes of
//! a token by itself; what it does to a whole text (a space that it drops at the beginning) is not known here.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;

/// Bytes by token id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// End of each token's bytes, which begin at the end of those before.
    ends: Vec<u32>,
    special: HashSet<u32>,
}

impl TokenBytes {
    /// From the bytes of tokens 0, 1, 2 …, and the ids of special tokens, which stand for no text.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>, special: impl IntoIterator<Item = u32>) -> Self {
        let mut table = Self { special: special.into_iter().collect(), ..Self::default() };
        for token in tokens {
            table.bytes.extend_from_slice(token);
            table.ends.push(table.bytes.len() as u32);
        }
        table
    }

    /// One more than the highest id.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True where there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of the text that `token` stands for: none for special and unknown ones.
    pub fn of_text(&self, token: u32) -> &[u8] {
        if self.is_special(token) { &[] } else { self.spelled(token) }
    }

    /// Bytes of `token`, the spelling of a special one included.
    pub fn spelled(&self, token: u32) -> &[u8] {
        self.range(token).map_or(&[], |range| &self.bytes[range])
    }

    /// True of BOS, EOS, padding and chat markers.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// Special tokens, ascending.
    pub fn special(&self) -> Vec<u32> {
        let mut special: Vec<u32> = self.special.iter().copied().collect();
        special.sort_unstable();
        special
    }

    fn range(&self, token: u32) -> Option<Range<usize>> {
        let token = token as usize;
        let end = *self.ends.get(token)?;
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        Some(start as usize..end as usize)
    }
}

/// What a decoder does to the spelling of one token.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Characters stand for bytes, as in GPT-2's vocabulary.
    ByteLevel,
    /// `<0x0A>` stands for a byte.
    ByteFallback,
    /// One text stands for another, `▁` for a space.
    Replace { pattern: String, content: String },
}

/// Makes bytes of spellings, as a decoder does.
#[derive(Debug)]
pub(super) struct TokenDecoder(Vec<Step>);

impl TokenDecoder {
    /// From the description of a decoder in `tokenizer.json`.
    ///
    /// # Errors
    /// A decoder whose tokens have no bytes of their own.
    pub fn new(decoder: &Value) -> Result<Self, String> {
        let mut steps = Vec::new();
        collect(decoder, &mut steps)?;
        match steps.is_empty() {
            true => {
                Err("its decoder is none of those whose tokens stand for bytes (ByteLevel, ByteFallback, Metaspace)"
                    .to_owned())
            }
            false => Ok(Self(steps)),
        }
    }

    /// Bytes of the token with this spelling.
    pub fn bytes(&self, spelling: String) -> Vec<u8> {
        let mut text = spelling;
        for step in &self.0 {
            match step {
                Step::ByteLevel => return byte_level(&text),
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::Replace { pattern, content } => text = text.replace(pattern.as_str(), content),
            }
        }
        text.into_bytes()
    }
}

fn collect(decoder: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
    let text = |name: &str| decoder[name].as_str().unwrap_or_default().to_owned();
    match decoder["type"].as_str().unwrap_or("none") {
        "Sequence" => decoder["decoders"].as_array().into_iter().flatten().try_for_each(|part| collect(part, steps))?,
        "ByteLevel" => steps.push(Step::ByteLevel),
        "ByteFallback" => steps.push(Step::ByteFallback),
        "Metaspace" => steps.push(Step::Replace { pattern: text("replacement"), content: " ".to_owned() }),
        "Replace" => match decoder["pattern"]["String"].as_str() {
            Some(pattern) => steps.push(Step::Replace { pattern: pattern.to_owned(), content: text("content") }),
            None => return Err("its decoder replaces by a regular expression".to_owned()),
        },
        // What they do concerns the whole text.
        "Fuse" | "Strip" => {}
        other => return Err(format!("its decoder is `{other}`, whose tokens have no bytes of their own")),
    }
    Ok(())
}

/// `spelling` as the ByteLevel decoder reads it: as it is where a character stands for no byte.
fn byte_level(spelling: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = spelling.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| spelling.as_bytes().to_vec())
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones of Latin-1 for themselves, and those from U+0100 on for the
/// others in their order.
fn byte_of(character: char) -> Option<u8> {
    let stands_for_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(|&byte| stands_for_itself(byte)),
        // A search through 256 bytes, for tokens of a vocabulary once: a table would have to be made first.
        code => (0..=u8::MAX).filter(|&byte| !stands_for_itself(byte)).nth(code as usize - 0x100),
    }
}

fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    // Longer spellings are words that look like one.
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spellings_become_bytes_as_their_decoder_reads_them() {
        let level = TokenDecoder::new(&json!({"type": "ByteLevel"})).unwrap();
        let steps = json!([
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]);
        let pieces = TokenDecoder::new(&json!({"type": "Sequence", "decoders": steps})).unwrap();
        let meta = TokenDecoder::new(&json!({"type": "Metaspace", "replacement": "▁"})).unwrap();
        for (decoder, spelling, bytes) in [
            (&level, "Ġthe", &b" the"[..]),
            (&level, "Ċ", b"\n"),
            (&level, "Ã", b"\xc3"),
            (&level, "ł", b"\xa0"),
            (&level, "漢", "漢".as_bytes()),
            (&pieces, "▁the▁", b" the "),
            (&pieces, "<0xE6>", b"\xe6"),
            (&pieces, "<0x+6>", b"\x06"),
            (&pieces, "<0xE6", b"<0xE6"),
            (&meta, "▁a", b" a"),
        ] {
            assert_eq!(decoder.bytes(spelling.to_owned()), bytes, "{spelling}");
        }
        let all: Vec<u8> = (0..0x144).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 256);
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn decoders_without_bytes_are_refused_by_name() {
        for decoder in
            [json!(null), json!({"type": "WordPiece"}), json!({"type": "Sequence", "decoders": [{"type": "Fuse"}]})]
        {
            assert!(TokenDecoder::new(&decoder).unwrap_err().starts_with("its decoder is "), "{decoder}");
        }
    }

    #[test]
    fn special_tokens_stand_for_no_text() {
        let table = TokenBytes::new([&b"a"[..], b"", b"<s>", b"bc"], [2]);
        let texts: Vec<&[u8]> = (0..5).map(|token| table.of_text(token)).collect();
        assert_eq!(texts, [&b"a"[..], b"", b"", b"bc", b""]);
        assert_eq!((table.spelled(2), table.len(), table.special()), (&b"<s>"[..], 4, vec![2]));
    }
}
