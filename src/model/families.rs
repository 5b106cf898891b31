//! One file a model family: each maps its `config.json` to [`super::DecoderConfig`] and copies no layer.
