//! Formats an event as a line of text or JSON.
//!
//! Values are redacted before they are put into a line, so that hiding a secret never breaks its form,
//! and control characters are escaped in text, so that no value can start a line of its own.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, Iso8601, TimePrecision};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use flashjob_config::{Redaction, escape_controls};

/// Beginning of the target of a line that a package other than `flashjob` says.
pub(super) const PACKAGE: &str = "flashjob_";
/// The same in lines and filters.
pub(super) const MODULE: &str = "flashjob::";

/// RFC 3339 with milliseconds.
const TIMESTAMP: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: std::num::NonZero::new(3) }).encode();

/// `2026-01-31T12:00:00.000Z  INFO mount: 12 files are visible location=/models`
pub(super) struct Text {
    pub(super) redaction: Arc<Redaction>,
}

/// `{"timestamp":"…","level":"info","target":"flashjob::mount","message":"…","location":"/models"}`
pub(super) struct Json {
    pub(super) redaction: Arc<Redaction>,
}

/// One event taken apart.
struct Line<'a> {
    redaction: &'a Redaction,
    target: Cow<'static, str>,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl<'a> Line<'a> {
    fn of(event: &Event<'_>, redaction: &'a Redaction) -> Self {
        let target = Cow::Borrowed(event.metadata().target());
        let mut line = Self { redaction, target, message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        line
    }

    /// A number or a flag, unless its digits are a secret.
    fn plain(&mut self, field: &Field, value: Value) {
        let shown = value.to_string();
        // Numbers, too: a secret may consist of digits only.
        let value = match self.redaction.apply(&shown) {
            Cow::Borrowed(_) => value,
            Cow::Owned(hidden) => hidden.into(),
        };
        self.push(field.name(), value);
    }

    /// Takes a field along, unless it is one in which a record of the `log` crate carries its place.
    fn push(&mut self, name: &'static str, value: Value) {
        // Fields that the bridge from the `log` crate adds: file, line and module.
        if !name.starts_with("log.") {
            self.fields.push((name, value));
        }
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let value = self.redaction.apply(value).into_owned();
        match field.name() {
            "message" => self.message = value,
            "log.target" => self.target = value.into(),
            name => self.push(name, value.into()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinities.
        if value.is_finite() { self.plain(field, value.into()) } else { self.record_debug(field, &value) }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let line = Line::of(event, &self.redaction);
        let target = name(&line.target);
        let target = target.strip_prefix("flashjob::").unwrap_or(&target);
        write!(out, "{} {:>5} {target}: ", timestamp(), event.metadata().level().as_str())?;
        out.write_str(&escape_controls(&line.message))?;
        for (name, value) in &line.fields {
            match value {
                Value::String(text) if text.contains(char::is_whitespace) || text.is_empty() => {
                    write!(out, " {name}={text:?}")?;
                }
                Value::String(text) => {
                    write!(out, " {name}={}", escape_controls(text))?;
                }
                other => write!(out, " {name}={other}")?,
            }
        }
        out.write_char('\n')
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let line = Line::of(event, &self.redaction);
        let mut object = Map::new();
        object.insert("timestamp".to_owned(), timestamp().into());
        object.insert("level".to_owned(), event.metadata().level().as_str().to_lowercase().into());
        object.insert("target".to_owned(), name(&line.target).into());
        object.insert("message".to_owned(), line.message.into());
        for (name, value) in line.fields {
            let mut key = name.to_owned();
            // A field that is called like one of the four above must not replace it.
            while object.contains_key(&key) {
                key.push('_');
            }
            object.insert(key, value);
        }
        writeln!(out, "{}", Value::Object(object))
    }
}

/// A target as readers of the log know it: packages are modules of one program there, `flashjob::mount` for `flashjob_mount`.
fn name(target: &str) -> Cow<'_, str> {
    match target.strip_prefix(PACKAGE) {
        Some(module) => format!("{MODULE}{module}").into(),
        None => target.into(),
    }
}

fn timestamp() -> String {
    OffsetDateTime::now_utc().format(&Iso8601::<TIMESTAMP>).unwrap_or_default()
}
