//! Pre-tokenizers: splitting of texts before byte-level BPE, by the names in `tokenizer.ggml.pre`.
//!
//! Names, and what follows from them, are those of llama.cpp (`src/llama-vocab.cpp`). Patterns are those of the models' own
//! `tokenizer.json`, which llama.cpp's rewrite for lack of lookaround, possessive quantifiers or Unicode categories.

/// A pre-tokenizer.
pub(super) struct Cut {
    names: &'static [&'static str],
    /// Patterns that split in turn the pieces that the previous one has left; matches and the text between them both
    /// become pieces.
    pub patterns: &'static [&'static str],
    /// True if a piece that is a token as a whole becomes that token, whatever the merges say.
    pub ignore_merges: bool,
    pub adds_bos: bool,
    pub alphabet: Alphabet,
}

/// Alphabet of a vocabulary's tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// A character for each byte, as in GPT-2 (byte-level BPE).
    Bytes,
    /// Text with `▁` for a space, and `<0x0A>` for a byte that no token covers.
    Text,
}

/// The pre-tokenizer called `name`.
pub(super) fn named(name: &str) -> Option<&'static Cut> {
    CUTS.iter().find(|cut| cut.names.contains(&name))
}

/// All names, in the order of the table.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CUTS.iter().flat_map(|cut| cut.names).copied()
}

const fn cut(names: &'static [&'static str], patterns: &'static [&'static str]) -> Cut {
    Cut { names, patterns, ignore_merges: false, adds_bos: false, alphabet: Alphabet::Bytes }
}

/// Contractions of English, in either case.
macro_rules! contractions {
    () => {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// The pattern of cl100k, which differs by model in the length of numbers.
macro_rules! like_cl100k {
    ($numbers:literal) => {
        concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// The pattern of o200k, which cuts at changes of case.
macro_rules! like_o200k {
    ($contractions:expr, $numbers:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $contractions,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $contractions,
            "|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// The last pattern of DeepSeek V3, which differs in what may follow punctuation.
macro_rules! like_deepseek {
    ($after_punctuation:literal) => {
        concat!(
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"##,
            $after_punctuation,
            r"|\s+(?!\S)|\s+"
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = like_cl100k!(r"\p{N}{1,3}");
const QWEN2: &str = like_cl100k!(r"\p{N}");
const DIGIT: &str = r"\p{N}";
const UP_TO_THREE_DIGITS: &str = r"\p{N}{1,3}";
const CHINESE_AND_JAPANESE: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = like_deepseek!(r"[\r\n]*|\s*[\r\n]+");
const GPT4O: &str = like_o200k!("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}");
// Full stops and commas of several scripts end a piece.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const LINES: &str = r"[^\n]+|\n+";

/// Letters of alphabets that have an upper and a lower case.
const CASED_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}",
    r"ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲ",
    r"ⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}",
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
);

#[rustfmt::skip]
const CUTS: &[Cut] = &[
    cut(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    cut(
        &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum",
            "modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe",
        ],
        &[GPT2],
    ),
    cut(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    Cut {
        ignore_merges: true,
        adds_bos: true,
        ..cut(
            &[
                "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
            ],
            &[LLAMA3],
        )
    },
    cut(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    Cut { ignore_merges: true, ..cut(&["glm4", "glm5"], &[LLAMA3]) },
    Cut { ignore_merges: true, ..cut(&["minicpm5"], &[UP_TO_THREE_DIGITS, like_cl100k!(r"\p{N}+")]) },
    cut(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    cut(
        &["qwen35"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    cut(&["ufakzeka"], &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]),
    cut(&["laguna"], &[LINES, QWEN2]),
    cut(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    ),
    cut(
        &["seed-coder"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    cut(
        &["exaone-moe"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    cut(
        &["jais-2"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
            r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)",
            r"|\s{1,2}(?!\S)|\s"
        )],
    ),
    cut(
        &["falcon"],
        &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    ),
    cut(
        &["deepseek-llm"],
        &[r"[\r\n]", CASED_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"],
    ),
    cut(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT]),
    cut(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[UP_TO_THREE_DIGITS, CHINESE_AND_JAPANESE, DEEPSEEK_V3],
    ),
    cut(
        &["spark2_5"],
        &[UP_TO_THREE_DIGITS, CHINESE_AND_JAPANESE, like_deepseek!(r"|[\r\n]"), DIGIT],
    ),
    cut(
        &["afmoe"],
        &[
            // Numbers are cut into threes from their end.
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            "[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{8c48}-\u{faff}\u{3040}-\u{309f}\u{30a0}-\u{30ff}\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+",
            DEEPSEEK_V3,
        ],
    ),
    Cut {
        ignore_merges: true,
        ..cut(
            &["youtu"],
            &[
                "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
                like_o200k!("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}"),
            ],
        )
    },
    Cut { ignore_merges: true, adds_bos: true, ..cut(&["tekken"], &[like_o200k!("", r"\p{N}")]) },
    cut(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    Cut { ignore_merges: true, ..cut(&["granite-embed-multi-97m"], &[GPT4O]) },
    cut(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
    cut(
        &["kimi-k2"],
        &[concat!(
            r"\p{Han}+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
            contractions!(), "?",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
            contractions!(), "?",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    cut(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    cut(&["viking"], &[BLOOM, DIGIT]),
    cut(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    Cut {
        adds_bos: true,
        ..cut(
            &["chameleon"],
            &[
                "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]", GPT2,
            ],
        )
    },
    Cut {
        alphabet: Alphabet::Text,
        ..cut(&["gemma4", "sarvam-moe", "granite-embed-multi-311m"], &[LINES])
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of `text`, as the `tokenizers` library cuts them.
    fn pieces(name: &str, text: &str) -> Vec<String> {
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
        let mut cut = PreTokenizedString::from(text);
        for pattern in named(name).unwrap().patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            split.pre_tokenize(&mut cut).unwrap();
        }
        let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
    }

    #[test]
    fn no_name_stands_for_two_ways_and_no_way_loses_a_character() {
        let all: Vec<_> = names().collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), different.len());
        let text = "It's 1234567 O'NEILL,\r\n\n  ǅungla été नमस्ते 漢字かな 한국어 №½ <sentinel:3>   \t!?\u{a0}💩\u{1F469}\u{200D}x \n";
        for name in all {
            assert_eq!(pieces(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn what_vocabularies_of_the_suite_do_not_show_is_cut_as_the_models_do() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-4o", "HelloWORLD's 12345/\n", &["Hello", "WORLD's", " ", "123", "45", "/\n"]),
            ("tekken", "HelloWORLD's 12", &["Hello", "WORLD", "'s", " ", "1", "2"]),
            ("dbrx", "IT'S 12345", &["IT", "'S", " ", "123", "45"]),
            ("qwen2", "IT'S 12", &["IT", "'S", " ", "1", "2"]),
            ("ufakzeka", "Ali'de", &["Ali", "'de"]),
            ("superbpe", "1234567 is it", &["1", "234", "567", " is it"]),
            ("tiny_aya", "1234567 a", &["1", "234", "567", " a"]),
            ("afmoe", "12345abc 漢字", &["12", "345", "abc", " ", "漢字"]),
            ("kimi-k2", "abc漢字DEF 1234", &["abc", "漢字", "DEF", " ", "123", "4"]),
            ("deepseek-v3", "foo_bar 1234\n", &["foo", "_bar", " ", "123", "4", "\n"]),
            ("bloom", "Hi, you", &["Hi", ",", " you"]),
            ("viking", "a 12", &["a", " ", "1", "2"]),
            ("seed-coder", "a ;\n", &["a", " ;", "\n"]),
            ("laguna", "a\n\n b", &["a", "\n\n", " b"]),
            ("exaone-moe", "a b c 1", &["a b c", " ", "1"]),
            ("gemma4", "a b\n\nc", &["a b", "\n\n", "c"]),
        ];
        for (name, text, expected) in cases {
            assert_eq!(pieces(name, text), *expected, "{name}");
        }
    }
}
