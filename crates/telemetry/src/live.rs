//! Live page of a run: progress, plots and the end of the log, as pieces of HTML that its script puts in place.
//!
//! It shows counts and levels, and no prompts and no answers. Plots are those of the report ([`flashjob_timeline`]), so that there
//! is nothing to draw in the browser. Pieces are rendered once a second at most, however many look.

mod document;
mod latencies;
mod now;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashjob_charts::{Figure, escape};
use flashjob_timeline::{Timeline, figures};
use parking_lot::Mutex;

pub(crate) use self::document::document;

use crate::logs::LogTail;
use crate::{Expected, Registry};

/// Age up to which those who look share the pieces: rendering takes processor time from the measurement.
const VALID: Duration = Duration::from_millis(900);

/// Sources of the live page beside the registry.
#[derive(Clone, Default)]
pub struct Live {
    /// The measured region over time.
    pub timeline: Arc<Timeline>,
    /// The last lines of the log.
    pub log: LogTail,
    /// Totals that are counted towards.
    pub expected: Expected,
    /// Name of the model.
    pub name: String,
}

/// The pieces of the page, rendered now and then.
pub(crate) struct Pieces {
    registry: Arc<Registry>,
    live: Live,
    rendered: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Pieces {
    pub(crate) fn new(registry: Arc<Registry>, live: Live) -> Self {
        Self { registry, live, rendered: Mutex::default() }
    }

    /// Name of what runs.
    pub(crate) fn name(&self) -> &str {
        &self.live.name
    }

    /// An object of JSON: pieces of HTML by the identifiers of the elements that they fill.
    pub(crate) fn text(&self) -> Arc<str> {
        // Rendered under the lock: of several who look at once, one renders and the others get its text.
        let mut rendered = self.rendered.lock();
        if let Some((at, text)) = &*rendered
            && at.elapsed() < VALID
        {
            return text.clone();
        }
        let text: Arc<str> = self.render().into();
        *rendered = Some((Instant::now(), text.clone()));
        text
    }

    fn render(&self) -> String {
        let totals = self.registry.totals();
        let recorded = self.live.timeline.recorded();
        let mut plots = recorded.as_ref().map(figures).unwrap_or_default();
        plots.extend(latencies::figure(&self.registry));
        let plots: String = plots.iter().map(Figure::to_html).collect();
        // Lines are redacted already, and escaped for terminals; here they are escaped for the page.
        let log: String = self.live.log.lines().iter().map(|line| escape(line)).collect();
        let pieces: BTreeMap<&str, String> = [
            ("now", now::now(&totals, &self.live.expected)),
            ("tiles", now::tiles(&totals, &self.live.expected, recorded.as_ref())),
            ("plots", plots),
            ("log", log),
        ]
        .into();
        serde_json::json!(pieces).to_string()
    }
}
