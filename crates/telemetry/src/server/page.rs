//! The text of `/metrics`, rendered a few times a second however often it is asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::Registry;

/// Age up to which scrapes share one text: rendering takes processor time from the measurement.
const VALID: Duration = Duration::from_millis(100);

pub(super) struct Page {
    registry: Arc<Registry>,
    rendered: Mutex<Option<(Instant, Bytes)>>,
}

impl Page {
    pub(super) fn of(registry: Arc<Registry>) -> Self {
        Self { registry, rendered: Mutex::new(None) }
    }

    /// The present values, at most a tenth of a second old.
    pub(super) fn text(&self) -> Bytes {
        // Rendered under the lock: of several scrapes at once, one renders and the others get its text.
        let mut rendered = self.rendered.lock();
        if let Some((at, text)) = &*rendered
            && at.elapsed() < VALID
        {
            return text.clone();
        }
        let text = Bytes::from(self.registry.render());
        *rendered = Some((Instant::now(), text.clone()));
        text
    }

    /// Drops the rendered text, as the values have become final.
    pub(super) fn forget(&self) {
        *self.rendered.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_event::{Event, Fact, Observer};

    #[test]
    fn a_text_is_shared_until_it_is_forgotten() {
        let registry = Arc::new(Registry::new());
        let page = Page::of(registry.clone());
        let first = page.text();
        registry.observe(&Event { at: Instant::now(), fact: Fact::BucketRead { bytes: 7 } });
        // Far in the future: the test does not depend on how fast it runs.
        let later = Instant::now() + Duration::from_secs(3600);
        page.rendered.lock().as_mut().unwrap().0 = later;
        assert_eq!(page.text(), first);
        page.forget();
        assert!(String::from_utf8_lossy(&page.text()).contains("flashjob_bucket_read_bytes_total 7"));
    }
}
